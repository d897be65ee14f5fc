"""From a hospital's PACS and report database to exams that are safe to train on (the paper's section 4.1).

sources     which PACS or folder `--images` names
joining     reports and studies meet by accession number; what is left over on either side
one_exam    one exam: its files (`exam_file`) become clean pictures, its report a clean record
engines     many exams at once: processes of this machine, or a Ray cluster
ledger      what is finished, so that a run that was killed goes on
output      the lists that training reads, and what was kept back
card        what the data set holds, in numbers and as a picture
"""
