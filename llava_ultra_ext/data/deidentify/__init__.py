"""De-identification of a hospital's reports, DICOM headers and pixels. Nothing leaves the machine.

keys        the secret, pseudonyms and the date shift of a patient
text        Chinese free text: `structured` (numbers, addresses), `dates`, `names`
headers     DICOM attributes by the basic profile of PS3.15 Annex E
pixels      burned-in banners
audit       what was removed how often, without any identifier
quarantine  what cannot be made safe, and why
"""
