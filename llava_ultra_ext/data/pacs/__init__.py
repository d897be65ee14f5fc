"""Where a hospital's DICOM files come from: a folder, DICOMweb or DIMSE, all through `source.Source`."""
