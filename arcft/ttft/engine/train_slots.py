"""Training of the units in the engine's slots: they step together, but start and end independently."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from arcft.memory import is_out_of_memory, release_memory
from arcft.models.adapter_config import LoraError
from arcft.models.stacked_lora import StackedLora
from arcft.text.stream import LengthError
from arcft.text.tokens import Example
from arcft.training.slots import SlotStep, SlotTrainer
from arcft.ttft.engine.memory_ladder import Current, MemorySettings, difference, explain, lower
from arcft.ttft.engine.slot import Save, SlotState
from arcft.ttft.engine.slot_autotune import MOST, SlotSearch
from arcft.ttft.engine.unit_settings import UnitSettings
from arcft.ttft.units import ADAPT_ROUND, Adapted, Assignment, Event, Failed, Lowered, Started, Stepped

SHARE_OF_TRAINING = 0.5
"""Share of the time to a deadline that is spent on training; the rest is for predictions."""

MUCH_SHORTER = 2
"""ttft.slots=auto measures again once units are shorter by this factor."""


class SlotTraining:
    """The units in training; they occupy slots 0, 1, ... without gaps."""

    def __init__(
        self,
        stacked: StackedLora,
        trainer: SlotTrainer,
        settings: UnitSettings,
        current: Current,
        *,
        patience: int | None,
        measures: bool,
        save: Save | None,
        clock: Callable[[], float],
    ) -> None:
        """`measures`: choose the number of slots by timing, and again once units are much shorter."""
        self.in_training: list[SlotState] = []
        self.search = None if current.memory.slots_known else SlotSearch()
        self._measures = measures
        self._measured_at: int | None = None
        self._stacked = stacked
        self._trainer = trainer
        self._settings = settings
        self._current = current
        self._patience = patience
        self._save = save
        self._clock = clock

    @property
    def capacity(self) -> int:
        """How many units may be in training, or waiting in a slot."""
        if any(state.alone for state in self.in_training):
            return 1
        return self._current.memory.slots if self.search is None else self.search.units_needed

    def make_room(self) -> Iterator[Event]:
        """Allocate one more slot; on out of memory keep the current number."""
        if len(self.in_training) < self._stacked.slots or len(self.in_training) >= self.capacity:
            return
        slots = self._stacked.slots
        try:
            self._stacked.resize(self.capacity)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            words = release_memory(error)
        if self.search is not None:
            yield from self._choose(slots, f"no memory for more: {words}")
            return
        new = dataclasses.replace(self._current.memory, slots=slots)
        reason = f"{difference(self._current.memory, new)} ({words})"
        yield self._lowered(self.in_training[0].assignment, new, reason)

    def admit(self, assignment: Assignment, notes: Sequence[str] = ()) -> Iterator[Event]:
        """Put the unit into the next free slot, or report why it can't be trained."""
        try:
            examples = self._settings.unit_examples(assignment)
        except LengthError as error:
            yield Failed(key=assignment.key, reason=str(error), retry=False)
            return
        train_until = None
        if assignment.deadline is not None:
            now = self._clock()
            train_until = now + SHARE_OF_TRAINING * max(0.0, assignment.deadline - now)
        self.in_training.append(SlotState(assignment, len(self.in_training), examples, train_until))
        recorded = self._settings.as_recorded(assignment, examples)
        yield Started(key=assignment.key, recipe=recorded, notes=(*notes, *examples.notes))

    def advance(self) -> Iterator[Event]:
        """One pass: an optimizer step for each unit in the group."""
        group = self._next_group()
        if not group:
            return
        try:
            for state in group:
                if not state.started:
                    self._begin(state)
            start = time.perf_counter()
            examples = [self._settings.next_examples(state) for state in group]
            steps = self._trainer.step(examples, group[0].slot)
            seconds = time.perf_counter() - start
        except Exception as error:
            failure = error
        else:
            yield from self._record(group, examples, steps, seconds)
            return
        yield from self._fail_or_lower(group, failure)

    def pop_finished(self) -> Iterator[tuple[SlotState, Adapted]]:
        """The units that have finished, with their best weights in their slots until `free_slots` is called."""
        for state in list(self.in_training):
            ended = state.ended(self._patience, self._clock())
            if ended is None or state.slot >= self._stacked.slots:
                continue
            if not state.started:
                self._stacked.reset(state.slot)
            elif state.best is not None and state.best[1] != state.step:
                self._trainer.restore(state.slot, state.best[2])
            adapter = None
            if self._save is not None and state.assignment.round == ADAPT_ROUND:
                write = partial(self._stacked.save, state.slot)
                adapter = self._save(state.assignment.unit, state.step, write)
            yield (
                state,
                Adapted(
                    key=state.assignment.key,
                    steps=state.step,
                    tokens=state.tokens,
                    seconds=state.seconds,
                    losses=tuple(state.losses),
                    ended=ended,
                    adapter=adapter,
                ),
            )

    def free_slots(self, gone: Sequence[SlotState]) -> None:
        """Free the slots of `gone` and close the gaps."""
        self.in_training = [state for state in self.in_training if state not in gone]
        for slot, state in enumerate(self.in_training):
            if state.slot != slot and state.started:
                self._trainer.move(state.slot, slot)
            state.slot = slot
        self._shrink()

    def _shrink(self) -> None:
        """Free the memory of slots that are no longer needed."""
        used = [state.slot + 1 for state in self.in_training if state.started]
        needed = max([self._current.memory.slots, *used])
        if self.search is None and needed < self._stacked.slots:
            self._stacked.resize(needed)

    def decide(self) -> Iterator[Event]:
        """Apply the choice of ttft.slots=auto once it is made, or when there are too few units to go on measuring."""
        if not self._measures or not self.in_training:
            return
        length = max(state.assignment.unit.length for state in self.in_training)
        search = self.search
        if search is None:
            # A machine that one long task keeps busy may have room for many short ones. (The lengths behind an
            # earlier engine's choice are unknown.)
            self._measured_at = self._measured_at or length
            slots = self._current.memory.slots
            is_full = len(self.in_training) >= slots and not self.in_training[0].alone
            if self._measured_at >= MUCH_SHORTER * length and is_full and slots < MOST:
                self.search = SlotSearch(slots)
            return
        if search.choice is None and len(self.in_training) < search.units_needed:
            search.wait()
        if search.choice is not None:
            yield from self._choose(search.choice, search.words() if search.gains else "nothing to compare")

    def _choose(self, slots: int, reason: str) -> Iterator[Event]:
        self.search = None
        self._measured_at = max(state.assignment.unit.length for state in self.in_training)
        self._current.memory = dataclasses.replace(self._current.memory, slots=slots, slots_known=True)
        self._shrink()
        yield Lowered(
            key=self.in_training[0].assignment.key,
            recipe=dataclasses.asdict(self._current.memory),
            reason=f"ttft.slots=auto: {slots} ({reason})",
        )

    @property
    def _is_measuring(self) -> bool:
        """Whether the next pass is one that the search requested."""
        return self.search is not None and len(self.in_training) >= self.search.units_needed

    def _next_group(self) -> list[SlotState]:
        if self.search is not None:
            first, count = self.search.next() if self._is_measuring else (0, self.search.level)
            return self.in_training[first : first + count]
        return self.in_training[: max(1, self._current.memory.slots)]

    def _record(
        self,
        group: Sequence[SlotState],
        examples: Sequence[Sequence[Example]],
        steps: Sequence[SlotStep],
        seconds: float,
    ) -> Iterator[Event]:
        tokens = [sum(len(example.input_ids) for example in own) for own in examples]
        if self.search is not None and self._is_measuring:
            self.search.record(sum(tokens), seconds)
        for state, step, own in zip(group, steps, tokens, strict=True):
            state.tokens += own
            state.seconds += seconds / len(group)
            state.losses.append(step.loss)
        for state, step, own in zip(group, steps, tokens, strict=True):
            if not step.finite:
                reason = f"loss {step.loss:.4g}, gradient norm {step.gradient_norm:.4g} in step {state.step}"
                yield from self._fail([state], f"not finite: {reason}")
                continue
            yield Stepped(
                key=state.assignment.key,
                step=state.step,
                steps=state.assignment.steps,
                loss=step.loss,
                tokens=own,
                seconds=seconds / len(group),
            )
        for state in group:
            if state not in self.in_training or not state.started:
                continue  # failed, or lost its slot
            try:
                self._check(state)
            except Exception as error:
                failure = error
            else:
                continue
            yield from self._fail_or_lower([state], failure)

    def _check(self, state: SlotState) -> None:
        """Evaluate the held-back examples, periodically and after the last step."""
        patience = self._patience
        if patience is None or not state.examples.held_back:
            return
        if state.step % max(1, patience // 4) and state.step < state.assignment.steps:
            return
        start = time.perf_counter()
        loss = self._trainer.loss(state.slot, state.examples.held_back)
        state.seconds += time.perf_counter() - start
        if state.best is None or loss < state.best[0]:
            state.best = (loss, state.step, self._trainer.snapshot(state.slot))

    def _begin(self, state: SlotState) -> None:
        assignment = state.assignment
        rate, factor = self._settings.rate(assignment), self._settings.factor(assignment)
        self._trainer.begin(state.slot, learning_rate=rate, factor=factor)
        state.started = True
        self._check(state)

    def _fail_or_lower(self, group: Sequence[SlotState], error: Exception) -> Iterator[Event]:
        """Handle an error in a pass of `group`: reduce the memory settings on out of memory, else fail the units."""
        if isinstance(error, LoraError):
            # The model's layers don't support more than one slot, whatever the unit.
            if self.search is None or len(group) == 1:
                raise error
            self._measures = False
            yield from self._choose(1, str(error))
            return
        if not is_out_of_memory(error):
            yield from self._fail(group, explain(error), retry=not isinstance(error, LengthError))
            return
        words = release_memory(error)
        if self.search is not None:
            self.search.stop(at_most=max(1, len(group) // 2))
            assert self.search.choice is not None
            yield from self._choose(self.search.choice, f"no memory for {len(group)}: {words}")
            return
        yield from self._lower(group, words)

    def _lower(self, group: Sequence[SlotState], words: str) -> Iterator[Event]:
        old = self._current.memory
        surplus = [state for state in self.in_training if state.started and state.slot >= old.slots]
        if surplus:
            # They started when there were more slots. Restart them before reducing the settings.
            for state in surplus:
                state.start_over()
            self._shrink()
            yield self._lowered(group[0].assignment, old, f"{len(surplus)} units restart later: {words}")
            return
        longest = max(
            len(example.input_ids)
            for state in group
            for example in (*state.examples.held_back, *self._settings.next_examples(state))
        )
        # Dropping slots that the pass did not use would free no memory.
        held = dataclasses.replace(old, slots=min(old.slots, max(2, len(group))))
        new = lower(held, longest=longest, shortest=self._settings.shortest_context)
        if new is None or not self._can_have(new):
            yield from self._fail(group, f"out of memory, and no setting is left to reduce: {words}")
            return
        yield self._lowered(group[0].assignment, new, f"{difference(old, new)} ({words})")
        yield from self._apply(old, new)

    def _can_have(self, new: MemorySettings) -> bool:
        """Reduce the adapters to the new rank, if it changed; False if there is not even enough memory for that."""
        if new.rank == self._stacked.rank:
            return True
        if self._stacked.adapts_parameters:
            return False
        try:
            self._stacked.lower_rank(new.rank)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory(error)
            return False
        for state in self.in_training:
            # The snapshot has another shape now; the next check takes a new one.
            state.best = None
        return True

    def _lowered(self, assignment: Assignment, new: MemorySettings, words: str) -> Lowered:
        self._current.memory = new
        return Lowered(key=assignment.key, recipe=dataclasses.asdict(new), reason=f"out of memory: {words}")

    def _apply(self, old: MemorySettings, new: MemorySettings) -> Iterator[Event]:
        self._trainer.gradient_checkpointing = new.gradient_checkpointing
        for state in self.in_training:
            if state.slot >= new.slots and not state.losses:
                state.start_over()
        self._shrink()
        if new.max_seq_length != old.max_seq_length:
            for state in list(self.in_training):
                try:
                    state.examples = self._settings.unit_examples(state.assignment)
                except LengthError as error:
                    yield Failed(key=state.assignment.key, reason=str(error), retry=False)
                    self.free_slots([state])

    def _fail(self, group: Sequence[SlotState], reason: str, *, retry: bool = True) -> Iterator[Event]:
        for state in group:
            yield Failed(key=state.assignment.key, reason=reason, retry=retry)
        self.free_slots(group)
