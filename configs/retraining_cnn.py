"""After pruning: rewind the weights, rewind the learning rate, or fine-tune. The small CNN on CIFAR-10.

The comparison of Renda et al. 2020 (arXiv 2003.02389), as in retraining_lenet5.py: every round prunes 36 %
(two rounds of 20 % in one; output layer 20 %) and trains from the weights of step 500 (`ticket`), or from
those that it has just trained, with the learning rates of steps 500 to 5,000 (`lr_rewind_chain`) or with
that of the last step (`finetune_chain`). The learning rate falls to a tenth after 60 and after 80 % of the
training. Three seeds, down to 17 % of the weights, where reinitialised and random masks are trained, too.

    python run.py --config configs/retraining_cnn.py

Needs cifar10.npz in data/, or an internet connection to fetch it once.
Time: 60 min on 2 x86-64 cores, estimated by `--dry-run`; 4 min 47 s on an H100 that other work shared.
Result: the section "After pruning" of the report, published in results/retraining_cnn.
"""

from lthjax.config import Data, Optim, Prune, Study, Train

config = Study(
    name="retraining_cnn",
    seeds=(0, 1, 2),
    levels=4,
    rewind=(500,),
    arms=("ticket", "lr_rewind_chain", "finetune_chain", "reinit", "random"),
    control_levels=(4,),
    model="small_cnn",
    data=Data(name="cifar10"),
    prune=Prune(rate=(("output", 0.2), (".", 0.36))),
    train=Train(steps=5000, batch=60, eval_every=1000),
    optim=Optim(lr=2e-3, schedule="steps", milestones=(3000, 4000)),
)
