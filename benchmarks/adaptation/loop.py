"""PEFT in a hand-written training loop."""

from __future__ import annotations

import torch

from adaptation.today import TrainerWay, arithmetic
from adaptation.workload import TaskWork


class LoopWay(TrainerWay):
    """Like TrainerWay, but calling forward, backward, clipping, AdamW and schedule directly."""

    def adapt(self, work: TaskWork) -> list[float]:
        workload, model = self.workload, self.model
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=workload.learning_rate, weight_decay=0.0, fused=True)
        steps = len(work.examples)
        warmup = round(workload.warmup_ratio * steps)

        def factor(step: int) -> float:
            return step / warmup if step < warmup else (steps - step) / (steps - warmup)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        losses = []
        for example in work.examples:
            batch = {name: torch.tensor([values], device=workload.device) for name, values in example.items()}
            with arithmetic(workload):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        # Read once at the end: reading a loss synchronises the GPU.
        return torch.stack(losses).tolist()
