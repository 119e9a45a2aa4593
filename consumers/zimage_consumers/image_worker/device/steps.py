"""Runs the engine on a batch, and tells its steps and previews."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL.Image import Image

from zimage_consumers.image_worker.window.jobs import Job, Notice, notice_of
from zimage_stream.engines.base import (
    Encode,
    Engine,
    ImageSpec,
    PreviewingEngine,
    Previews,
    SteppingEngine,
    makes_previews,
    reports_steps,
)
from zimage_stream.events.image_result import Source
from zimage_stream.events.progress import ProgressStage


class TellingEngine:
    """An engine whose steps and previews are told, as far as it reports them. For the engine's thread only.

    Args:
        tell: receives notices of progress, without blocking.
        tells_steps: whether to tell every step of every request.
        tells_previews: whether to tell the previews that requests ask for, each with the step that it was
            made after. Where the other steps are not told, these are.
    """

    def __init__(
        self, engine: Engine, tell: Callable[[Notice], None], tells_steps: bool, tells_previews: bool
    ) -> None:
        self._engine = engine
        self._stepping: SteppingEngine | None = engine if tells_steps and reports_steps(engine) else None
        self._previewing: PreviewingEngine | None = (
            engine if tells_previews and makes_previews(engine) else None
        )
        self._tell = tell

    def generate(self, specs: Sequence[ImageSpec], jobs: Sequence[Job]) -> list[Image]:
        """The images of these jobs, until nobody wants them. Raises as the engine does."""

        def unwanted() -> bool:
            return all(job.unwanted for job in jobs)

        if self._previewing is not None and any(job.decoded.previews for job in jobs):
            return self._with_previews(self._previewing, specs, jobs, unwanted)
        if self._stepping is not None:
            return self._stepping.generate(specs, unwanted, stepped=lambda *at: self._tell_step(jobs, *at))
        return self._engine.generate(specs, unwanted)

    def _with_previews(
        self,
        engine: PreviewingEngine,
        specs: Sequence[ImageSpec],
        jobs: Sequence[Job],
        unwanted: Callable[[], bool],
    ) -> list[Image]:
        shown: dict[Source, Encode] = {}

        def show(index: int, _: int, encode: Encode) -> None:
            shown[jobs[index].record.source] = encode

        def stepped(step: int, steps: int) -> None:
            previews = dict(shown)
            shown.clear()
            every = self._stepping is not None
            told = [job for job in jobs if every or job.record.source in previews]
            if told:
                self._tell(notice_of(ProgressStage.STEP, told, step, steps, previews))

        counts = [job.decoded.previews for job in jobs]
        return engine.generate(specs, unwanted, stepped=stepped, previews=Previews(counts, show))

    def _tell_step(self, jobs: Sequence[Job], step: int, steps: int) -> None:
        self._tell(notice_of(ProgressStage.STEP, jobs, step, steps))
