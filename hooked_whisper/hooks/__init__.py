"""Names for activations, and what reads, keeps and replaces them, in any model that has them.

The one room that imports transformer_lens. A hook point has a name, axes and
checked hooks (`points`); `root` has the class that finds them by `names`, and runs with
hooks (`attached`), caches (`collector`, `cache`, `residual`) and autoencoders (`splicing`
at a `splice_site`, each a `splice`); `passes` says what a hook can know of its pass.
"""
