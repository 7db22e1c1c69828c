"""The training loop and its parts: optimiser, schedules, stages, checkpoints, logging.

Recipe -> `run.run_recipe` -> `loop.train` -> per step: `data_order` -> objective -> `optim` -> `logging`,
`checkpoint`

`stages` and `schedules` say what a run is and import no torch. What is done to a model from outside is in
`parallel` (processes, recomputation, compilation) and `lora`; `account` counts what a step costs.
"""
