"""A model whose answers repeat endlessly, and prompts for it."""

from tiny_models import make_tiny_model

from sft.packing.logprobs import enable_scoring

PROMPTS = [
    {
        "id": f"p{i}",
        "messages": [{"role": "user", "content": f"tell me about {word}"}],
        "category": "writing",
        "language": "en",
    }
    for i, word in enumerate(["rain", "a cat", "numbers", "tea", "the sea", "a road", "x", "snow"])
]


def looping_model(width, seed):
    """Return a random one-layer model; its greedy decoding runs into loops."""
    model = make_tiny_model(seed, initializer_range=width, hidden_size=16, num_hidden_layers=1)
    return enable_scoring(model)
