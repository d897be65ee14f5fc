"""Public and hospital data as exam records: one module a source, all with the same three names.

``SUMMARY`` says in a line what the source is, ``add_arguments`` adds its own flags to a parser, and ``read`` turns the
parsed flags into a `source.Reading`. ``data/importing.py`` does the rest: pictures, splits, files. A new source is a
module like these and a row in `SOURCES`.
"""

SOURCES = {
    "slake": "llava_ultra_ext.data.sources.slake",
    "openi": "llava_ultra_ext.data.sources.openi",
    "busi": "llava_ultra_ext.data.sources.busi",
    "exams": "llava_ultra_ext.data.sources.exams",
}
"""Name on the command line -> reader module."""
