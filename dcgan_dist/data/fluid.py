"""A stream as the first stage of a pipeline of the webdataset library; the only module that needs this library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from webdataset import DataPipeline, FluidInterface, pipelinefilter
from webdataset.filters import default_collation_fn

from dcgan_dist.data.sample_stream import SampleStream


class FluidStream(DataPipeline, FluidInterface):  # type: ignore[misc]  # the library has no types
    """A `SampleStream` to which stages can be added: ``.decode("rgb8").map(change).batched(32)``.

    Each stage returns a pipeline of this class. All pipelines made from one stream share its position.
    """

    def __init__(self, source: SampleStream) -> None:
        super().__init__(source)

    @property
    def source(self) -> SampleStream:
        """The first stage."""
        source: SampleStream = self.pipeline[0]
        return source

    @property
    def batches_per_epoch(self) -> int:
        """See `SampleStream`."""
        return self.source.batches_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """See `SampleStream`."""
        self.source.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `SampleStream`; samples that a later stage holds back, such as `shuffle`, count as yielded."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `SampleStream`."""
        self.source.load_state_dict(state)

    def batched(
        self,
        batchsize: int,
        collation_fn: Callable[[list[Any]], Any] | None = default_collation_fn,
        partial: bool = True,
    ) -> FluidStream:
        """Make batches as the library does, but without reading one sample ahead, which a saved state would skip."""
        pipeline: FluidStream = self.compose(_batched(batchsize, collation_fn, partial))
        return pipeline

    def listed(self, batchsize: int, partial: bool = True) -> FluidStream:
        """Make lists of samples; see `batched`."""
        return self.batched(batchsize, None, partial)


def _in_batches(
    samples: Iterable[Any], size: int, collate: Callable[[list[Any]], Any] | None, partial: bool
) -> Iterator[Any]:
    samples = iter(samples)
    while batch := list(islice(samples, size)):
        if len(batch) == size or partial:
            yield batch if collate is None else collate(batch)


_batched = pipelinefilter(_in_batches)
