"""Instruction data from exams with reports (paper, 4.2): ``llava-ultra instruct``.

``reported_exam`` reads what can be asked about, a `written.Writer` says what is asked and answered (``template``, or
``chat`` with its ``chat_client`` and ``report_check``), ``records`` makes both versions of both stages, and ``command``
writes them.
"""
