"""When a run that is still finite has gone wrong: its loss has risen far above where it was."""

import dataclasses

LEAST = 1_000  # images that a mean is taken over at least: one step's loss depends on the times it drew


class Diverged(RuntimeError):
    """Training stopped because the loss has risen; the message is one line."""


@dataclasses.dataclass
class Watch:
    """Means of the loss over every `window` steps, against the lowest before. Its fields are what a checkpoint keeps.

    A loss that may be negative has no such ratio: once a mean is not above 0 nothing is said any more.
    """

    window: int
    factor: float | None
    lowest: float | None = None
    total: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, config, state: dict | None = None) -> "Watch":
        """That of a config, as a checkpoint's `state` left it."""
        images = max(config.log.every_images, LEAST)
        return cls(max(1, images // config.batch_size), config.optimizer.stop_above, **(state or {}))

    @property
    def state(self) -> dict:
        return {"lowest": self.lowest, "total": self.total, "count": self.count}

    def see(self, step: int, loss: float) -> str | None:
        """Take the loss of the next step; one line where the run has diverged."""
        if self.factor is None:
            return None
        self.total, self.count = self.total + loss, self.count + 1
        if self.count < self.window:
            return None
        mean, lowest = self.total / self.count, self.lowest
        self.total, self.count = 0.0, 0
        self.lowest = mean if lowest is None else min(mean, lowest)
        if lowest is not None and lowest > 0 and mean > self.factor * lowest:
            return (f"step {step}: the loss is {mean:.4g} over the last {self.window} steps and was {lowest:.4g} "
                    f"before, {mean / lowest:.3g} times less; config.optimizer.stop_above={self.factor:g} ends such a "
                    "run, and a lower rate may do")
        return None
