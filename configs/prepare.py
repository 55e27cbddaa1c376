r"""Turns folders of pictures into one dataset with groups and splits.

python -m micdiffrep_jax.main --config=configs/prepare.py \
  --config.data.source=DIR --config.data.out=OUT \
  --config.data.group_regex='^(patient\d+)'

Folders of patients and series, and a split that the source brings:
  --config.data.layout='class/patient/...' --config.data.given_split=keep
A BIDS tree: --config.data.class_field=COLUMN of its participants.tsv.

crystal_clean  the Kaggle set "Crystal Clean: Brain Tumors MRI Dataset":
  python -m micdiffrep_jax.main --config=configs/prepare.py:crystal_clean \
    --config.data.source=~/data/crystal_clean --config.data.out=datasets/cc64
  12 s on 2 CPU cores for 17,332 files; 20 s at 112 px. Two pictures of that
  set carry two labels: --config.data.conflicts=drop leaves them out. A table
  of patients (file, group, patient_known): --config.data.group_csv=TABLE.
"""

from ml_collections import ConfigDict


def get_config(preset: str = '') -> ConfigDict:
  """The fields of a preparation; preset '' or 'crystal_clean'."""
  config = ConfigDict()
  config.task = 'prepare'
  config.seed = 0  # of the splits

  data = config.data = ConfigDict()
  data.source = (
    ''  # labelled: DIR, tfds:NAME[:SPLIT] or phantom[:key=value,...]
  )
  data.unlabelled = ()  # more of the same, for pretraining only
  data.data_dir = ''  # where tfds:NAME lies; '' is ~/tensorflow_datasets
  data.out = ''  # folder to write
  data.overwrite = False  # replace `out` where it holds something else
  data.size_px = 64  # side of the square images, 8 to 1024
  data.channels = 1  # 1 grey, 3 colour
  data.classes = ()  # order of the classes; () takes the folders' names, sorted
  data.class_map = ()  # ('folder=class', ...) renames before that
  # What the folders are, from the top: words class, patient, split, series, *,
  # and ... for any number: 'class/patient/...'. '' takes the last as class.
  data.layout = ''
  data.class_field = ''  # BIDS: column of participants.tsv that is the class
  data.given_split = ''  # of folders train, val, test: '' warns | keep | ignore
  data.skip_masks = True  # leave out x_mask.png beside x.png, and BIDS' derived
  data.max_bad_share = 0.01  # unreadable files, as a share, that are tolerated
  data.workers = 0  # threads that read; 0 is one per core

  data.slices = 'foreground'  # of volumes: foreground | all | central-N
  data.ct_window = (40.0, 80.0)  # centre and width of CT, HU: brain
  # Grey levels of volumes: auto (CT by ct_window, others by percentiles), or
  # one of them for all: ct | percentiles.
  data.intensity = 'auto'

  # Which files are copies of one picture: crystal_clean, or a pattern with the
  # named groups source and variant.
  data.variant_regex = ''
  # Whose they are: per file, the first that names a patient wins; after these
  # DICOM's PatientID and a folder sub-XX.
  data.group_csv = ''  # table: file (a source will do), group, patient_known
  data.group_field = ''  # feature of a TFDS dataset
  data.group_regex = ''  # of the patient: '^(patient\d+)'
  # Asked after data.layout: parent (folder) or file (accept unknown patients).
  data.group_by = ''

  data.near_duplicates = ConfigDict()  # correlations of 32 px head crops
  data.near_duplicates.enabled = True  # False joins equal pixels only
  data.near_duplicates.full = 0.98  # of the whole picture, together with
  data.near_duplicates.detail = 0.85  # that of its high-pass; or
  data.near_duplicates.detail_alone = 0.95  # that of its high-pass alone
  data.conflicts = 'error'  # one picture, two labels: error | drop | keep

  data.test_share = 0.2  # of the sources or groups
  data.val_share = 0.15  # of what test leaves

  if preset == 'crystal_clean':
    data.variant_regex = 'crystal_clean'
    data.classes = (
      'Normal',
      'glioma_tumor',
      'meningioma_tumor',
      'pituitary_tumor',
    )
  elif preset:
    raise ValueError(f'Unknown preset {preset!r}; crystal_clean, or none.')
  return config
