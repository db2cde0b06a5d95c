"""Engine sets: built from a bundle by a backend (`build`), kept in a `store`, opened by the runtime (`engine_set`)."""
