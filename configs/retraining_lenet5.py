"""After pruning: rewind the weights, rewind the learning rate, or fine-tune. LeNet-5 on MNIST.

The comparison of Renda et al. 2020 (arXiv 2003.02389), iterated: every round prunes 20 % and then trains as
long as the others, from the weights of step 125 (`ticket`), or from those that it has just trained, with the
learning rates of steps 125 to 1,250 (`lr_rewind_chain`) or with that of the last step (`finetune_chain`). The
learning rate falls to a tenth after 60 and after 80 % of the training. Six seeds, down to 7 % of the weights.

    python run.py --config configs/retraining_lenet5.py

Needs mnist.npz in data/, or an internet connection to fetch it once.
Time: 30 min on 2 x86-64 cores that other work shared.
Result: the section "After pruning" of the report.
"""

from lthjax.config import Data, Optim, Study, Train

config = Study(
    name="retraining_lenet5",
    seeds=(0, 1, 2, 3, 4, 5),
    levels=12,
    rewind=(125,),
    arms=("ticket", "lr_rewind_chain", "finetune_chain"),
    model="lenet5",
    data=Data(name="mnist"),
    optim=Optim(schedule="steps", milestones=(750, 1000)),
    train=Train(steps=1250, batch=60, eval_every=250),
)
