"""Engine sets: `build` compiles them from a bundle and keeps them in the store, for the runtime to open."""
