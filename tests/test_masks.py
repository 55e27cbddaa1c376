"""Masks are told by their names where their pictures are there."""

import numpy as np
import pytest
import trees

from micdiffrep_jax.data import masks


@pytest.mark.parametrize(
  ('mask', 'picture'),
  [
    ('b/benign (1)_mask.png', 'b/benign (1).png'),
    ('b/benign (1)_mask_1.png', 'b/benign (1).png'),
    ('b/x_seg.png', 'b/x.jpg'),
    ('b/x-label.png', 'b/x.png'),
    ('b/x_segmentation.png', 'b/x.png'),
    ('b/x_GT.png', 'b/x.png'),
    ('b/mask_x.png', 'b/x.png'),
    ('b/case1_seg.nii.gz', 'b/case1_t1.nii.gz'),
    ('segmentation-12.nii', 'volume-12.nii'),
    ('b/masks/1.png', 'b/images/1.png'),
    ('masks/b/1.png', 'images/b/1.png'),
    ('b/GroundTruth/1.png', 'b/1.png'),
    ('Task1_GroundTruth/a_segmentation.png', 'Task1_Input/a.jpg'),
    ('labelsTr/a.nii.gz', 'imagesTr/a_0000.nii.gz'),
    ('b/s1/segmentations/liver.nii.gz', 'b/s1/ct.nii.gz'),
    ('1st_manual/21_manual1.gif', 'images/21_training.tif'),
    ('sub-01/anat/sub-01_desc-brain_mask.nii.gz', 'sub-01/anat/sub-01_T1w.nii'),
    ('out/sub-01_dseg.nii.gz', 'sub-01/anat/sub-01_T1w.nii.gz'),
  ],
)
def test_a_mask_belongs_to_its_picture(mask, picture):
  other = 'well/alone.png'
  assert masks.find([picture, mask, other]) == {mask: picture}
  assert masks.find([mask, other]) == {}  # without its picture it is one


@pytest.mark.parametrize(
  'files',
  [
    ['mask/1.png', 'nomask/1.png'],  # two classes
    ['with_mask/1.png', 'without_mask/1.png'],
    ['sick/label.png', 'well/1.png'],
    ['sick/G_1.png', 'sick/G_1_BR_.png'],
    ['sick/x_mask.png', 'well/x.png'],
    ['sick/unmasked.png', 'sick/un.png'],
    ['b/labels/x.png', 'b/1.png', 'b/2.png'],
  ],
)
def test_what_only_sounds_like_a_mask_is_a_picture(files):
  assert masks.find(files) == {}


def test_derivatives_count_beside_raw_subjects_only():
  below = 'derivatives/prep/sub-01/anat/sub-01_T1w.nii.gz'
  raw = 'sub-01/anat/sub-01_T1w.nii.gz'
  assert masks.derivatives([below, raw]) == [below]
  assert masks.derivatives([below]) == []
  assert masks.derivatives([below, 'sick/a.png']) == []


def with_masks(root, name='{}_mask.png'):
  trees.class_tree(root, variants=('',))
  for path in sorted(root.glob('*/*.png')):
    shown = np.zeros((48, 48), np.uint8)
    shown[10 : 20 + len(path.name), 10:30] = 255
    trees.write(path.parent / name.format(path.stem), shown)


def test_masks_are_left_out_told_and_can_be_kept(tmp_path, capsys):
  with_masks(tmp_path / 'in')
  made = {'variant_regex': '', 'group_by': 'file'}
  ds = trees.prepared(tmp_path / 'in', tmp_path, **made)
  assert len(ds.images) == ds.info.junk['masks'] == 24
  assert ds.info.left_out['masks'] == 'sick/S_1_mask.png'
  assert '24 masks, e.g. sick/S_1_mask.png' in capsys.readouterr().out
  kept = trees.prepared(
    tmp_path / 'in',
    tmp_path,
    out='kept',
    skip_masks=False,
    near_duplicates={'enabled': False},
    conflicts='keep',
    **made,
  )
  assert len(kept.images) == 48
  assert kept.info.rules['two_levels'] == 24


def test_masks_of_an_unknown_name_are_found_by_their_grey_levels():
  names = ['a/1.png', 'a/1_x.png', 'a/2.png', 'b/7.png', 'b/masks/7.png']
  found = masks.beside(['a/1_x.png', 'a/2.png', 'b/masks/7.png'], names)
  assert found == {'a/1_x.png': 'a/1.png', 'b/masks/7.png': 'b/7.png'}
