"""Packaging of llava_ultra_ext.

The base install pins nothing of LLaVA's world: torch, transformers and LLaVA itself are whatever the user's
environment already has, and ``pip install llava_ultra_ext`` must not move them. Extras add what a task needs; fully
pinned sets that are known to work together are in ``requirements/``.
"""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "llava": ["llava-torch==1.2.2.post1"],
    "llava-git": ["llava @ git+https://github.com/haotian-liu/LLaVA.git@v1.2.2.post1"],
    "train": ["deepspeed>=0.12.6", "peft>=0.4,<0.11"],
    "sam": ["segment-anything==1.0"],
    "flash": ["flash-attn>=2.3"],
    "dicom": ["pydicom>=3,<4", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"],
    "eval": ["jieba", "jinja2", "matplotlib", "sacrebleu", "shortuuid"],
    "phantom": ["scipy"],
    "hospital": [
        "dicom-anonymizer>=2.1,<3",
        "dicomweb-client>=0.60",
        "httpx",
        "imagehash>=4.3",
        "jieba",
        "openpyxl>=3.1",
        "psycopg[binary]>=3.2",
        "pyarrow>=14,<24",
        "pydantic>=2.2",
        "pydicom>=3,<4",
        "pylibjpeg",
        "pylibjpeg-libjpeg",
        "pylibjpeg-openjpeg",
        "pynetdicom>=3,<4",
        "scipy",
        "sqlalchemy>=2.1",
        "tenacity>=9",
    ],
    "serve": [
        "fastapi",
        "gradio>=6,<7",
        "httpx",
        "prometheus-client",
        "pydantic>=2.2",
        "pydicom>=3,<4",
        "pylibjpeg",
        "pylibjpeg-libjpeg",
        "pylibjpeg-openjpeg",
        "scipy",
        "uvicorn",
    ],
    "ray": ["ray>=2.9"],
    "ocr": ["jieba", "onnxruntime", "opencv-python-headless", "rapidocr>=3.10,<4"],
    "dev": [
        "faker",
        "hypothesis",
        "mypy",
        "nltk",
        "openai>=2,<3",
        "playwright",
        "pre-commit",
        "pre-commit-hooks",
        "psutil",
        "pydicom-data",
        "pytest",
        "pytest-xdist",
        "ruff",
        "types-openpyxl",
        "types-PyYAML",
        "types-requests",
        "types-tqdm",
    ],
}
readme = Path(__file__).with_name("README.md")

setup(
    name="llava_ultra_ext",
    version="0.1.0",
    description="LLaVA-Ultra (CLIP and SAM fused, one frame chosen of an exam, Chinese) as a plugin for LLaVA",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["llava_ultra_ext", "llava_ultra_ext.*"]),
    package_data={
        "llava_ultra_ext.data": ["sites.yaml"],
        "llava_ultra_ext.data.deidentify": ["clinical_words.txt", "name_cues.txt", "surnames.txt"],
        "llava_ultra_ext.eval": ["ultrasound_terms.txt", "examples.html.j2"],
        "llava_ultra_ext.serve.page": ["*.css", "*.html", "*.js", "*.yaml"],
    },
    install_requires=["numpy", "pillow", "pyyaml", "safetensors", "tqdm"],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["llava-ultra = llava_ultra_ext.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
