"""What goes wrong while completions are written or scored."""

from __future__ import annotations

from arcft.errors import ArcftError


class DecodingError(ArcftError):
    """The model can't answer: its logits are not numbers, or what it is asked makes no sense."""
