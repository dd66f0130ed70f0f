"""Online training: a turn draws pictures with the model as it is, scores them, and trains on them; the next turn draws anew.

The loop is a source of batches for the `Trainer`, which stays as it is: same step, guard, watch, moving average, checkpoints, processes.

- A **turn** has `prompts_per_turn` prompts with `images_per_prompt` pictures each, and `updates_per_turn` optimiser steps. Every prompt of
  it is trained on equally often. The sampler's epochs go through the prompts of a turn, so turn and position follow from the step alone.
- `turns.Turns` does a turn: the old policy moves, a network draws (the policy, the old policy or the moving average), scorers judge, and
  the turn is written to the log. The trainer calls it before each step.
- `drawing` has what draws: the stock pipeline; a rollout with noise whose steps are kept, for policy gradients of the sampler; or a
  language model that is trained, with a painter that draws what it writes. `ratio` refuses to train on kept steps and tokens whose ratio
  is not one before the first update. `outlook` says what a turn costs.
- `judges` and `rewards` make one reward and one advantage a picture of what the scorers say; `trees` makes those of BranchGRPO's trees.
- `pairs` are the trainer's data: the latents that were drawn (not the pictures, encoded again), or the tokens that were sampled (not the
  texts, tokenised again), and what the method's transforms make of the scores, such as advantages or a pair.
- `log.Log` keeps each turn as a preference table of its own, with the latents beside it, and joins them to `data` at the end of the run.

A picture's seed is made of the run's seed, the turn, its prompt and its number, and the log of a turn is there whole or not at all. So a
run that is killed goes on from its last checkpoint: it opens the turn that the checkpoint lies in, and draws later turns anew, to the same
bits on one CPU process.
"""
