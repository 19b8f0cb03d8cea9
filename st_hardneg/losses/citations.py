"""BibTeX entries that the losses add to a model card."""

from __future__ import annotations

FACENET = """
@inproceedings{schroff2015facenet,
    title={FaceNet: A Unified Embedding for Face Recognition and Clustering},
    author={Florian Schroff and Dmitry Kalenichenko and James Philbin},
    booktitle={2015 IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
    pages={815-823},
    year={2015},
    eprint={1503.03832},
    archivePrefix={arXiv},
    primaryClass={cs.CV}
}
"""
