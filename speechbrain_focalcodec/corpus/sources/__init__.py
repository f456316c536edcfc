"""Sources of a corpus: folders, manifests, Kaldi folders and lists."""

from speechbrain_focalcodec.corpus.sources.item import Item, Source
from speechbrain_focalcodec.corpus.sources.opening import open_source

__all__ = ["Item", "Source", "open_source"]
