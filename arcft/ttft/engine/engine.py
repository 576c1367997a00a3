"""One resident model that adapts to unit after unit, several at once, and predicts them.

With one slot, the result of a unit depends on its assignment, the checkpoint and the config, and on nothing else in
the run: its examples are drawn from (seed, unit), its adapter starts from the same weights, and a batch holds the
prompts of one test. With more slots, the last bits of floating-point sums depend on the units beside it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from arcft.config.inference import InferenceConfig
from arcft.config.ttft import TtftConfig
from arcft.models.adapter_config import LoraError
from arcft.models.stacked_lora import StackedLora
from arcft.protocols import DealViews, OwnExamples, QuestionSampler
from arcft.text.builder import ExampleBuilder
from arcft.training.slots import SlotTrainer
from arcft.ttft.engine.memory_ladder import Current, MemorySettings
from arcft.ttft.engine.predict_slots import SlotPrediction, UnitInSlot
from arcft.ttft.engine.slot import Save
from arcft.ttft.engine.slot_autotune import resolve_slots
from arcft.ttft.engine.train_slots import SlotTraining
from arcft.ttft.engine.unit_settings import UnitSettings
from arcft.ttft.units import Assignment, Event, Failed, Finished, Started, Stepped

Pull = Callable[[int | None], Assignment | None]


class Engine:
    """Works on assignments and yields events. Writes nothing except through `save`."""

    def __init__(
        self,
        stacked: StackedLora,
        learn: ExampleBuilder,
        ask: ExampleBuilder,
        *,
        config: TtftConfig,
        inference: InferenceConfig,
        num_views: int | None = None,
        own: OwnExamples,
        questions: QuestionSampler,
        deal_views: DealViews,
        learning_rate: float,
        pad_id: int,
        save: Save | None = None,
        memory: MemorySettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`learn` builds training examples and drops demonstrations to fit, `ask` builds prompts. `own` says how a
        problem is learned without its tests, `questions` draws augmented training questions (data.view=leave_one_out),
        and `deal_views` deals the augmentations of prompts. With `num_views`, predicted answers are scored under that
        many augmentations. `memory` holds the memory settings of an earlier process, if there was one. `clock` measures
        deadlines."""
        on_cpu = stacked.model.device.type == "cpu"
        slots = resolve_slots(config.slots, stacked.model.device.type, can_share=not stacked.adapts_parameters)
        self._stacked = stacked
        self._current = Current(
            memory
            or MemorySettings(
                slots=1 if slots == "auto" else slots,
                gradient_checkpointing=False,
                max_seq_length=learn.max_seq_length,
                rank=stacked.rank,
                batch_size=inference.batch_size,
                merge=stacked.can_merge,
                slots_known=slots != "auto",
            )
        )
        if self.memory.rank < stacked.rank:
            stacked.lower_rank(self.memory.rank)
        positions = learn.tokenization.positions
        trainer = SlotTrainer(stacked, pad_id=pad_id, max_grad_norm=config.max_grad_norm, positions=positions)
        trainer.gradient_checkpointing = self.memory.gradient_checkpointing
        settings = UnitSettings(
            learn,
            self._current,
            config=config,
            own=own,
            questions=questions,
            learning_rate=learning_rate,
        )
        self._adapting = SlotTraining(
            stacked,
            trainer,
            settings,
            self._current,
            patience=config.patience,
            measures=slots == "auto",
            save=save,
            clock=clock,
        )
        together = not on_cpu and slots != 1
        self._answering = SlotPrediction(
            stacked,
            ask,
            deal_views,
            self._current,
            inference=inference,
            num_views=num_views,
            together=together,
            clock=clock,
        )
        self._next: Assignment | None = None
        self._ready: list[Assignment] = []
        self._exhausted = False

    @property
    def memory(self) -> MemorySettings:
        """The current memory settings."""
        return self._current.memory

    def work(self, pull: Pull, stopped: Callable[[], bool]) -> Iterator[Event]:
        """Pull assignments while slots are free, and yield events, until there is nothing left to do.

        `pull` takes the preferred length of the next unit, or None; if it returns None, it is called again after a step
        and whenever a unit finishes or fails. Ends within one training step or decoded batch after `stopped`.
        """
        self._exhausted = False
        try:
            for event in self._loop(pull, stopped):
                if isinstance(event, Stepped | Finished | Failed):
                    self._exhausted = False
                yield event
        finally:
            # If the generator is closed early, the caller requeues these units unchanged.
            self._adapting.in_training = []
            self._next = None
            self._ready = []

    def _loop(self, pull: Pull, stopped: Callable[[], bool]) -> Iterator[Event]:
        while not stopped():
            yield from self._fill(pull, stopped)
            if self._ready:
                yield from self._answer_ready(stopped)
                continue
            # Some units have no time to train at all.
            yield from self._graduate(stopped)
            if not self._adapting.in_training:
                if self._exhausted:
                    return
                continue
            yield from self._adapting.decide()
            if stopped():
                return
            yield from self._adapting.advance()
            yield from self._graduate(stopped)

    def _fill(self, pull: Pull, stopped: Callable[[], bool]) -> Iterator[Event]:
        """Pull until all slots are taken, or until there are units that need no training and can be predicted now."""
        adapting = self._adapting
        while not stopped() and len(adapting.in_training) < adapting.capacity:
            if self._next is not None:
                if self._next.attempt and adapting.in_training:
                    return  # a retry waits until it can run alone
                assignment, self._next = self._next, None
                yield from adapting.admit(assignment)
                continue
            if self._exhausted:
                return
            yield from adapting.make_room()
            if len(adapting.in_training) >= adapting.capacity:
                return
            pulled = pull(adapting.in_training[0].assignment.unit.length if adapting.in_training else None)
            if pulled is None:
                self._exhausted = True
                return
            if pulled.steps and pulled.adapter is None:
                self._next = pulled
                if self._ready:
                    return  # they need the free slot
                continue
            self._ready.append(pulled)
            if not self._waits_for_more(pulled):
                return

    def _waits_for_more(self, pulled: Assignment) -> bool:
        """Whether more units may join the batch of ready ones: all must use the start adapter."""
        rows = sum(assignment.predictions for assignment in self._ready)
        fits = rows + pulled.predictions <= self.memory.batch_size
        return self._answering.together and fits and all(assignment.adapter is None for assignment in self._ready)

    def _answer_ready(self, stopped: Callable[[], bool]) -> Iterator[Event]:
        """Predict the units that need no training, using a free slot."""
        slot = len(self._adapting.in_training)
        ready, self._ready = self._ready, []
        saved = [assignment for assignment in ready if assignment.adapter is not None]
        unadapted = [assignment for assignment in ready if assignment.adapter is None]
        if unadapted:
            self._stacked.reset(slot)
            for assignment in unadapted:
                yield self._started(assignment)
            yield from self._answering.answer([UnitInSlot(assignment, slot) for assignment in unadapted], stopped)
        for assignment in saved:
            yield from self._answer_saved(assignment, slot, stopped)

    def _answer_saved(self, assignment: Assignment, slot: int, stopped: Callable[[], bool]) -> Iterator[Event]:
        assert assignment.adapter is not None
        try:
            self._stacked.load(slot, Path(assignment.adapter))
        except LoraError as error:
            # The adapter can be trained again on the same examples; its predictions are discarded with it.
            again = dataclasses.replace(assignment, adapter=None, done=frozenset())
            yield from self._adapting.admit(again, (f"adapted again, as its adapter can't be used: {error}",))
            return
        yield self._started(assignment)
        yield from self._answering.answer([UnitInSlot(assignment, slot)], stopped)

    def _started(self, assignment: Assignment) -> Started:
        return Started(key=assignment.key, recipe=dataclasses.asdict(self.memory))

    def _graduate(self, stopped: Callable[[], bool]) -> Iterator[Event]:
        """Predict the units whose training has ended, then free their slots."""
        ended = []
        for state, adapted in self._adapting.pop_finished():
            ended.append(state)
            yield adapted
        if ended:
            yield from self._answering.answer([UnitInSlot(state.assignment, state.slot) for state in ended], stopped)
            self._adapting.free_slots(ended)
