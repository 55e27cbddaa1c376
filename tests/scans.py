"""DICOM and NIfTI files for tests."""

import numpy as np


def write_dicom(path, pixels, patient='Doe^Jane', syntax=None, **fields):
  """pixels (h, w), (k, h, w), or colour (h, w, 3) or (k, h, w, 3) uint8.

  Fields replace those made here; one that is None is left out.
  """
  import pydicom

  meta = pydicom.dataset.FileMetaDataset()
  record = pydicom.dataset.Dataset()
  record.file_meta = meta
  record.SOPClassUID = pydicom.uid.MRImageStorage
  record.PatientID = patient
  record.Modality = 'MR'
  colour = pixels.shape[-1] == 3 and pixels.dtype == np.uint8
  record.SamplesPerPixel = 3 if colour else 1
  record.PhotometricInterpretation = 'RGB' if colour else 'MONOCHROME2'
  if colour:
    record.PlanarConfiguration = 0
  shape = pixels.shape[: pixels.ndim - colour]
  record.Rows, record.Columns = shape[-2:]
  if len(shape) == 3:
    record.NumberOfFrames = shape[0]
  bits = 8 * pixels.dtype.itemsize
  record.BitsAllocated = record.BitsStored = bits
  record.HighBit = bits - 1
  record.PixelRepresentation = int(pixels.dtype.kind == 'i')
  data = pixels.astype(pixels.dtype.newbyteorder('<')).tobytes()
  record.PixelData = data + b'\0' * (len(data) % 2)
  for name, value in fields.items():
    setattr(record, name, value)
  for name, value in fields.items():
    if value is None:
      delattr(record, name)
  uid = record.get('SOPClassUID', pydicom.uid.MRImageStorage)
  meta.MediaStorageSOPClassUID = uid
  meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
  meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  if syntax:
    record.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    record.compress(syntax, generate_instance_uid=False)
  path.parent.mkdir(parents=True, exist_ok=True)
  record.save_as(path, enforce_file_format=True)
  return str(path)


def item(**fields):
  """A sequence of one item."""
  import pydicom

  made = pydicom.dataset.Dataset()
  for name, value in fields.items():
    setattr(made, name, value)
  return pydicom.sequence.Sequence([made])


def write_nifti(path, values, affine=(1, 1, 1, 1), slope=None):
  """values (right, front, up) for the identity; affine (4, 4), or diagonal."""
  import nibabel

  affine = np.asarray(affine, float)
  affine = affine if affine.ndim == 2 else np.diag(affine)
  image = nibabel.Nifti1Image(values, affine)
  if slope:
    image.header.set_slope_inter(*slope)
  path.parent.mkdir(parents=True, exist_ok=True)
  nibabel.save(image, path)
  return str(path)
