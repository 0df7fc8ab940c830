"""whisper-sae's first version: two linear layers with their biases and a ReLU between them.

    f = relu(encoder.weight x + encoder.bias),    decoder.weight f + decoder.bias

dictionary_learning's `AutoEncoderNew` has the same tensors and the same formula.

Source: omarkhursheed/whisper-sae, `librispeech_sae_training.py`.
"""

from hooked_whisper.sae.files.build import Found
from hooked_whisper.sae.files.tensors import Contents

LAYOUT = {
    "encoder.weight": "d_sae d_in",
    "encoder.bias": "d_sae",
    "decoder.weight": "d_in d_sae",
    "decoder.bias": "d_in",
}


def read_two_layers(contents: Contents) -> Found:
    """ReLU without a bias before the encoder."""
    sizes = contents.sizes(LAYOUT)
    tensors = contents.tensors
    return Found(
        contents.path,
        {
            "architecture": "standard",
            "d_in": sizes["d_in"],
            "d_sae": sizes["d_sae"],
            "apply_b_dec_to_input": False,
            "metadata": {"source": "whisper-sae v1"},
        },
        {
            "W_enc": tensors["encoder.weight"].T,
            "b_enc": tensors["encoder.bias"],
            "W_dec": tensors["decoder.weight"].T,
            "b_dec": tensors["decoder.bias"],
        },
    )
