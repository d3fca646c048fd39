"""Define the sentences that several pages print: section introductions and counting rules.

The report (HTML and Markdown) and the published site print the same texts.
"""

COUNTING_RULES = (
    "n is the number of examples of a cell, including those that the model misclassifies without "
    "attack. Such an example is not attacked and does not count as robust.",
    "Clean accuracy is the number of examples classified correctly before the attack, of n. Robust "
    "accuracy is the number classified correctly before and after, of n.",
    "Attack success rate is the number correct before and wrong after, of those correct before. "
    "Targeted: the number that ends as the target, of those correct before whose label is not the "
    "target. Where no example could be attacked there is no rate, and a dash.",
    "Worst case: an example is robust only if it is classified correctly after every attack.",
    "Certified: a bound proves that no image in the intersection of the ball and the box changes "
    "the label. An example that is neither certified nor broken by an attack is undecided.",
    "Intervals are 95 % Wilson intervals of the count behind the rate.",
    "An attack breaks an example on which it succeeds; with a target, by reaching the target. Two "
    "attacks are compared by the examples that each breaks, two models by the examples on which "
    "each is robust, on the same examples and by the exact McNemar test. The p-values of a run are "
    "corrected together (Holm).",
    "The distance of an example under a minimum-norm attack is 0 if the model misclassifies it "
    "without attack, and infinite if no adversarial example was found. Local optimality is "
    "1 - (A - A*) / (rho(0) eps_max - A*), where A is the area under the attack's security curve "
    "and A* that of the smallest distance found by any attack: 1 is the best at every eps, 0 finds "
    "nothing. The interval of a median lies between two order statistics and holds for any "
    "distribution.",
    "Every returned image is verified: shape, box, ball, finite values, and the model's "
    "prediction, computed again. An image that breaks a rule is a violation and counts as a failed "
    "attack on that example.",
    "A cell that failed or was skipped is a dash with its reason. It never counts as robust.",
)
"""How the numbers of every page are defined."""

SENTENCES = {
    "violations": "Violations: images that break the attack's contract. Each counts as a failed "
    "attack.",
    "no_violations": "Every returned image was verified, and none is a violation.",
    "excluded": "Cells without a number. They print as a dash and never count as robust.",
    "audit": "Symptoms of a failed attack. Where one occurs, a high robust accuracy is no evidence "
    "of a robust model. Symptoms change no number.",
    "worst": "An example is robust only if it is classified correctly after every attack.",
    "unions": "An example is robust to threat models together only if it is classified "
    "correctly without attack and under every attack of every norm, up to the eps named. A smaller "
    "ball lies in the larger one of its norm, so the attacks at smaller eps count, too. An example "
    "is broken by a norm alone if the other norms leave it robust.",
    "charts": "Robust accuracy against eps, with 95 % bands; at eps 0, clean accuracy. Attacks "
    "with equal counts share a curve. Move the pointer over a chart, or use the arrow keys, to "
    "read the values at an eps; click an attack to highlight its curve.",
    "models": "Models of several runs on the same examples, under the same norm and goal. Bold is "
    "the model that stays robust on most examples of a column, with all that the exact McNemar "
    "test on the same examples finds not significantly different (5 %, Holm-corrected for the "
    "comparisons of a table). Where a run has no records there is no test; tables.md says so below "
    "each table, and lists parameters and versions.",
    "pivots": "Robust accuracy with 95 % intervals; of targeted attacks, the success rate. Attacks "
    "with equal lines share one.",
    "rejections": "Of the examples that the model accepts and classifies correctly without attack: "
    "answered, accepted and classified correctly under attack; rejected; and wrong, accepted and "
    "misclassified. A rejected clean image is not classified correctly. An attack aims at what "
    "counts as an error, so that neither way of counting can be read from a run of the other.",
    "classes": "Robust accuracy by true class, under the worst case over the attacks. Each "
    "interval is that of one class; the lowest of many classes is partly lowest by chance. An "
    "example that several attacks fool counts with the prediction under the first of them.",
    "certified": "Certified bounds prove that no image of the ball changes the label: the true "
    "robust accuracy lies between the certified accuracy and the robust accuracy under all "
    "attacks.",
    "smoothed": "Randomised smoothing certifies the smoothed classifier, which predicts the class "
    "that the model most probably predicts of the image with Gaussian noise, and not the model. No "
    "attack of this page attacked it, so these numbers bound no robust accuracy on this page. An "
    "example is certified beyond a radius if the smoothed classifier predicts its label and an "
    "exact (Clopper-Pearson) bound of the class's probability proves that prediction in a larger "
    "L2 ball. Where it abstains, nothing is certified. Each radius is wrong with probability alpha "
    "at most; the intervals are those of the share of examples.",
    "contradiction": "Contradiction: an attack broke certified examples, so the bound or the "
    "verification is wrong.",
    "seeds": "The same attack with several seeds. Under every seed: an example is robust only if "
    "no seed broke it.",
    "stages": "Each part attacks the examples that the parts before it left robust. The robust "
    "accuracy after a part is an upper bound, which further parts can only lower.",
    "min_norm": "Each minimum-norm attack ran once and returns the distance of its adversarial "
    "examples. Forward and backward passes are per example. The security curves are among the "
    "figures.",
    "queries": "Attacks that search by the model's scores or labels, within the numbers of queries "
    "of the suite, each read from one run. A query is one image that the model is asked about. "
    "Median and mean queries are over the examples that are fooled within as many; medians have "
    "their 95 % interval.",
    "query_figures": "The curves are among the figures.",
    "query_pairs": "Searches at equal queries, example by example. p is that of the exact sign "
    "test of the two counts, corrected by Holm's procedure for all pairs and budgets of the run; "
    "examples with equal distances are left out. Medians, and p before the correction, are in "
    "query_pairs.csv.",
    "not_significant": "n.s.: no significant difference at this eps.",
    "corruptions": "Error: corrupted images that are misclassified, of all n images. Corruptions "
    "are drawn without regard to the model: an average case, and no statement about an adversary. "
    "An image that only its corruption makes right is no error here, but is not robust in the "
    "tables of attacks. Means have no interval: the severities share their images.",
    "references": "The model of a source is not this one unless the source says so: a difference "
    "is due to the model and the attack together. The interval is that of the measured count; the "
    "reference figure has its own uncertainty.",
    "transfer": "Examples crafted on one model and evaluated on another. An example that a model "
    "misclassifies without attack counts as an error. The confidence is the mean over the "
    "examples on which the attack succeeds.",
    "sizes": "Means over the examples on which the attack succeeds, at each attack's largest eps.",
    "explained": "Explained by experiment:",
    "unexplained": "To find out why this pair differs, run in the run's folder:",
    "regenerate": "Reproduce with:",
}
"""Introductions of sections, by key."""
