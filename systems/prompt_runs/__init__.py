"""Prompt runs: each due prompt, at each model, several times a day, on Tidemill.

Owns what `tidemill dev systems.prompt_runs` loads: the job types. Reading order: `data` (what is
stored), `jobs` (what runs), `web` (what people and crons call).
"""

from __future__ import annotations

from systems.prompt_runs.jobs import daily, fan_out, give_up, run_prompt

__all__ = ["daily", "fan_out", "give_up", "run_prompt"]
