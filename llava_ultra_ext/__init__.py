"""LLaVA-Ultra for the official LLaVA: SAM beside CLIP, and a sampler that picks the frame that mirrors the text.

The package follows the data, in the order of the paper's figure 2::

    arguments -> exams (data/) -> tower -> projector -> sampler -> LLM -> answer -> metrics / serving
                 paths, findings  SAM+CLIP  eq. 2: H_v   eq. 3-5   LLaVA's own

Importing it changes nothing and loads neither torch nor LLaVA: ``llava-ultra enable`` (or a patched checkout)
arms the seams of :mod:`llava_ultra_ext.llava_seams`, ``llava-ultra disable`` removes them, ``llava-ultra doctor`` says
which.

One alphabet for shapes, used in every docstring:

====  =======================================================
E     exams (rows) of a batch
N     frames of a batch, all exams together, in reading order
k     frames of one exam (one redundancy group)
T     tokens of a frame (cells of the token grid)
C     channels of an encoder
D     hidden size of the LLM
K     frames kept of a group
L     text tokens
G     redundancy groups of a batch
====  =======================================================
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
