"""Exams: from files to batches. Imports no LLaVA; tokenizer, template and image processor are handed in.

``manifest`` reads and checks a training file into ``exam`` records, ``tokenize`` turns a conversation into ids and
labels, ``exam_dataset`` yields samples and batches, ``frame_scores`` keeps a teacher's scores between runs.
"""
