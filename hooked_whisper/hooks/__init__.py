"""Names for activations, and what reads, keeps and replaces them, in any model that has them.

The one room that imports transformer_lens. A hook point has a name, axes and
checked hooks (`points`); a root module finds them by `names` and runs with hooks
and caches (`root`, `collector`, `cache`, `residual`); `splice` puts an autoencoder
behind one; `passes` says what a hook can know of the pass that it fires in.
"""
