"""The three kinds of model that are trained: images, texts, rewards. Each file has the same five names: build, preview, save, load,
outlook; what a kind's config may hold is checked in `methods.checks`, without torch."""
