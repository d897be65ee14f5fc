"""DICOM files become 8-bit RGB frames, chosen from a cine by a stated rule; nothing is written."""
