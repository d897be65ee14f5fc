"""Reports of a hospital: rows from SQL, CSV and Excel by one mapping, each usable row once, the others with a reason.

``mapping`` says which column is what, ``sql`` and ``files`` yield cells ordered by accession number, ``row`` checks
them, ``reading`` keeps the last version of each. Needs the extra ``[hospital]``.
"""

from llava_ultra_ext.data.reports.mapping import ReportMapping, load_mapping
from llava_ultra_ext.data.reports.reading import read_reports
from llava_ultra_ext.data.reports.row import REASONS, RefusedRow, ReportRow

__all__ = ["REASONS", "RefusedRow", "ReportMapping", "ReportRow", "load_mapping", "read_reports"]
