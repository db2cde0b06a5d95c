"""The noise a checkpoint was trained with: the part of ``scheduler_config.json`` that belongs to the model.

The rest of that file describes one sampler. Whatever class it names, sdrt runs LMS, so other samplers' options are
ignored; options that would change the noise levels themselves are refused by name.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

# numpy is imported in functions: describing a checkpoint needs only these fields.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Singles = npt.NDArray[np.float32]

PredictionType = Literal["epsilon", "v_prediction"]
Beta = Annotated[float, Field(gt=0, lt=1)]

MAX_TRAIN_TIMESTEPS = 100_000
LMS_CLASS = "LMSDiscreteScheduler"
MAX_COSINE_BETA = 0.999
#: Scheduler classes of diffusers whose noise levels do not derive from betas: flow matching, EDM, consistency models
#: and others. Their configs may still hold betas, left over from the class that they were converted from.
WITHOUT_BETAS = frozenset({
    "AmusedScheduler", "BlockRefinementScheduler", "CMStochasticIterativeScheduler", "ConsistencyDecoderScheduler",
    "CosineDPMSolverMultistepScheduler", "DDPMWuerstchenScheduler", "DiscreteDDIMScheduler",
    "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "EntropyBoundScheduler", "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "HeliosDMDScheduler",
    "HeliosScheduler", "IPNDMScheduler", "KarrasVeScheduler", "LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler",
    "PiflowScheduler", "RFD4ProteinaScheduler", "SCMScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler",
    "UnCLIPScheduler", "VQDiffusionScheduler",
})  # fmt: skip

OTHER_SCHEDULER_HINT = (
    "give the scheduler_config.json of the model that it was tuned from, if that was trained over betas"
)


class NoiseConfig(BaseModel):
    """The options that LMS depends on; names and defaults are those of diffusers' scheduler classes."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)

    class_name: str = Field(default=LMS_CLASS, alias="_class_name")
    num_train_timesteps: int = Field(default=1000, ge=1, le=MAX_TRAIN_TIMESTEPS)
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: list[Beta] | None = None
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: str = "linspace"
    use_karras_sigmas: Literal[False] = False
    use_exponential_sigmas: Literal[False] = False
    use_beta_sigmas: Literal[False] = False
    use_flow_sigmas: Literal[False] = False
    rescale_betas_zero_snr: Literal[False] = False

    @field_validator("class_name")
    @classmethod
    def _has_betas(cls, name: str) -> str:
        if name in WITHOUT_BETAS:
            raise ValueError("a scheduler without betas, hence without LMS's sigmas")
        return name

    @field_validator("trained_betas")
    @classmethod
    def _one_beta_a_timestep(cls, betas: list[float] | None, info: ValidationInfo) -> list[float] | None:
        if betas is not None and len(betas) != info.data.get("num_train_timesteps"):
            raise ValueError(f"there must be num_train_timesteps of them, not {len(betas)}")
        return betas

    @field_validator("timestep_spacing")
    @classmethod
    def _linspace(cls, spacing: str, info: ValidationInfo) -> str:
        # diffusers writes the default spacing of other classes into every config it saves: not a property of the model.
        if info.data.get("class_name") == LMS_CLASS and spacing != "linspace":
            raise ValueError("must be 'linspace'")
        return spacing

    def betas(self) -> Singles:
        """Return the variance added at each training timestep, float32 [num_train_timesteps]."""
        import numpy as np

        if self.trained_betas is not None:
            return np.array(self.trained_betas, dtype=np.float32)
        if self.beta_schedule == "linear":
            return self._evenly(self.beta_start, self.beta_end)
        if self.beta_schedule == "scaled_linear":
            return np.square(self._evenly(math.sqrt(self.beta_start), math.sqrt(self.beta_end)))
        return _cosine_betas(self.num_train_timesteps)

    def _evenly(self, start: float, end: float) -> Singles:
        import numpy as np

        return np.linspace(start, end, self.num_train_timesteps, dtype=np.float32)

    def sigmas(self) -> Singles:
        """Return the noise level sqrt((1 - alpha_bar) / alpha_bar) at each training timestep, [num_train_timesteps].

        Computed in float32 as in diffusers: at low noise 1 - alpha_bar keeps only four digits there, and a table in
        float64 would differ from the reference by 3e-5.
        """
        import numpy as np

        # torch accumulates a float32 cumprod in float64 and rounds each product.
        alphas = np.float32(1) - self.betas()
        alphas_cumprod = np.cumprod(alphas, dtype=np.float64).astype(np.float32)
        with np.errstate(divide="ignore", over="ignore"):
            sigmas: Singles = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
        return sigmas


def _cosine_betas(count: int) -> Singles:
    """Return the betas of the squared cosine schedule, capped (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17)."""
    import numpy as np

    times = np.arange(count + 1) / count
    alpha_bar = np.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    betas: Singles = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_COSINE_BETA).astype(np.float32)
    return betas
