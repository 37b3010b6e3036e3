"""What a model holds while it trains."""

import keras


class Recorder(keras.callbacks.Callback):
    """What the first batch of every epoch sees, before it trains."""

    def __init__(self, what):
        super().__init__()
        self.what, self.seen = what, []

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.seen.append(self.what(self.model))
