"""DICOM files become 8-bit RGB frames, their scan region and the choice of a cine's frames; nothing is written."""
