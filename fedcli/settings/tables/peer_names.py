"""Names of TFF, FedJAX, Flower and Keras that fedcli does not have, and what to write instead.

The errors about unknown names (`fedcli.lazy.UnknownName`), unknown arguments
(`fedcli.errors.refuse_unknown`) and unknown values (`fedcli.settings.options.choose`) load these
tables. Tests compare the tables with the manual's page coming-from. The code in an answer assumes
`import fedcli` and `from fedcli import aggregators, datasets, layers, learning, models, optimizers,
own_models`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

from fedcli.lazy import load
from fedcli.settings.options import did_you_mean, letters_of

TFF, FEDJAX, FLOWER, KERAS = "TFF", "FedJAX", "Flower", "Keras"


class PeerName(NamedTuple):
    """A name of another program.

    Attributes:
        program: The program.
        code: What to write in fedcli instead; if empty, `why` says what to do.
        why: What else a user must know; empty if nothing.
    """

    program: str
    code: str
    why: str = ""

    def __str__(self) -> str:
        """Returns the end of a message."""
        if not self.code:
            return self.why
        why = f" ({self.why})" if self.why else ""
        return f"in place of {self.program}'s, write {self.code}{why}"


class PeerArgument(NamedTuple):
    """A keyword argument of other programs.

    Attributes:
        ours: Its possible names in fedcli; the message shows those that the called function takes.
        why: What to do if the called function takes none of them.
    """

    ours: tuple[str, ...]
    why: str = ""


_SHAPE_GOES_IN = "write models.sequential([layers.Input(shape), ...]), with the shape at the start"
_NO_TYPES = "arrays are NumPy's, and no types, placements or computations are declared"
_LOADS = 'datasets.load("emnist-digits")'
_OWN_PART = "see fedcli help extending"
_NO_TEXT = "fedcli has no text data; see fedcli help known-sets for its data sets"
_UNIFORM_WEIGHTS = "learning.build_unweighted_fed_avg weights all clients equally"
_AGGREGATOR = "learning.build_own('fedavg', model, client_optimizer, aggregator=...) takes one"
_NO_PROCESSES = "clients are not processes: fedcli.train(config, out) computes all of them"
_ROUND_SAMPLING = 'fedcli.RunConfig(sampling="tff", clients=10)'
_IN_MEMORY = "data, _ = datasets.from_arrays({client_id: (pixels, labels)})"
_KERAS_FILE = 'models.load("model.keras")'
_SHUFFLED_EPOCHS = (
    '.preprocess(batch_size=20, epochs=5, shuffle_buffer="full", pipeline="shuffle-repeat")'
)
_EVALUATION = "learning.build_fed_eval(model)"
_STORE = 'train, test = datasets.load("sample.h5")'
_SQL = "after fedcli preprocess FILE --out sample.h5, which makes a store of an SQLite file"
_LOSS_IS_FIXED = (
    "leave it out: the loss is the cross-entropy of the last layer's logits; a model of your own "
    "(own_models.OwnModel) computes its own"
)
_METRICS = (
    "leave it out: loss, accuracy and counts are always computed; further metrics: see fedcli help "
    "metrics"
)
_LAYERS = (
    'models.sequential([layers.Input((784,)), ...]) makes a model, and models.load("model.keras") '
    "opens one of Keras"
)
_SAVES_A_RUN = "it saves by itself, and fedcli.resume(out) continues the run"
_HPARAMS = "options are arguments of the function that builds the process; build it again"

# Attributes of modules and objects.
NAMES: Mapping[str, PeerName] = MappingProxyType(
    {
        # TFF: data.
        "simulation": PeerName(
            TFF,
            "",
            "in place of the modules in tff.simulation: datasets.load(name) loads data, such as "
            '"emnist-digits" or "cifar100", and datasets.from_arrays takes arrays '
            "(TestClientData); fedcli.train(config, out) runs all rounds, and "
            'fedcli.RunConfig(sampling="tff", clients=10) samples clients; see fedcli help '
            "coming-from",
        ),
        "baselines": PeerName(TFF, "", "fedcli has no tasks; fedcli info presets lists settings"),
        "run_training_process": PeerName(TFF, "fedcli.train(config, out)"),
        "run_stateless_simulation": PeerName(TFF, "fedcli.train(config, out)"),
        "SqlClientData": PeerName(TFF, _STORE, _SQL),
        "load_and_parse_sql_client_data": PeerName(TFF, _STORE, _SQL),
        "gldv2": PeerName(TFF, "", "fedcli does not have these data; see fedcli help known-sets"),
        "inaturalist": PeerName(
            TFF, "", "fedcli does not have these data; see fedcli help known-sets"
        ),
        "emnist": PeerName(TFF, _LOADS),
        "cifar100": PeerName(TFF, 'datasets.load("cifar100")', "first: fedcli download cifar100"),
        "load_data": PeerName(TFF, _LOADS),
        "shakespeare": PeerName(TFF, "", _NO_TEXT),
        "stackoverflow": PeerName(TFF, "", _NO_TEXT),
        "HDF5ClientData": PeerName(TFF, 'data, _ = datasets.load("train.h5")'),
        "TestClientData": PeerName(TFF, _IN_MEMORY),
        "create_tf_dataset_for_client": PeerName(TFF, "data.client(client_id)"),
        "create_tf_dataset_from_all_clients": PeerName(
            TFF, "learning.build_centralized(model, client_optimizer)", "it pools a cohort's data"
        ),
        "element_type_structure": PeerName(TFF, "data.element_spec"),
        "dataset_computation": PeerName(TFF, "data.client(client_id)"),
        "serializable_dataset_fn": PeerName(TFF, "data.client(client_id)"),
        "from_clients_and_tf_fn": PeerName(TFF, _IN_MEMORY),
        "train_test_client_split": PeerName(
            TFF,
            "",
            "fedcli preprocess DATA --out FILE --hold-out clients makes a test split of clients",
        ),
        # TFF: methods of tf.data.Dataset.
        "preprocess": PeerName(
            TFF, "data.client(client_id).preprocess(epochs=5, shuffle_buffer=100, batch_size=20)"
        ),
        "repeat": PeerName(TFF, ".preprocess(epochs=5)"),
        "shuffle": PeerName(TFF, ".preprocess(shuffle_buffer=100)", "seed= sets its seed"),
        "batch": PeerName(TFF, ".preprocess(batch_size=20)"),
        "Dataset": PeerName(TFF, _IN_MEMORY, "pass NumPy arrays; tf.data is not taken"),
        "from_tensor_slices": PeerName(TFF, _IN_MEMORY),
        "take": PeerName(
            TFF,
            "list(dataset)[:40]",
            "to train on them, give dataset.images()[:40] and dataset.labels[:40] to "
            "datasets.from_arrays",
        ),
        "map": PeerName(
            TFF, _IN_MEMORY, "give it the changed arrays; layers.Normalization and the like scale"
        ),
        "filter": PeerName(TFF, _IN_MEMORY, "give it the examples that stay"),
        "prefetch": PeerName(TFF, "", "leave it out: the core reads ahead by itself"),
        "as_numpy_iterator": PeerName(TFF, "list(dataset)", "its elements are NumPy's already"),
        "numpy": PeerName(TFF, "", "leave out .numpy(): arrays and numbers are NumPy's already"),
        # TFF: models.
        "from_keras_model": PeerName(
            TFF,
            _KERAS_FILE,
            'after keras_model.save("model.keras"); models.sequential takes layers',
        ),
        "functional_model_from_keras": PeerName(
            TFF,
            _KERAS_FILE,
            'after keras_model.save("model.keras"); models.sequential takes layers',
        ),
        "VariableModel": PeerName(TFF, "own_models.OwnModel", "see fedcli help models"),
        "FunctionalModel": PeerName(TFF, "own_models.OwnModel", "see fedcli help models"),
        "BatchOutput": PeerName(TFF, "own_models.BatchOutput", "see fedcli help models"),
        "TensorSpec": PeerName(TFF, 'own_models.ArraySpec((None, 784), "float32")'),
        "clone_model": PeerName(TFF, "", "leave it out: processes do not change a model"),
        "keras": PeerName(KERAS, "", _LAYERS),
        "losses": PeerName(KERAS, "", _LOSS_IS_FIXED),
        "SparseCategoricalCrossentropy": PeerName(KERAS, "", _LOSS_IS_FIXED),
        "CategoricalCrossentropy": PeerName(KERAS, "", _LOSS_IS_FIXED),
        "SparseCategoricalAccuracy": PeerName(KERAS, "", _METRICS),
        "SparseTopKCategoricalAccuracy": PeerName(
            KERAS, "", "fedcli eval RUN --top-k K computes it"
        ),
        "create_functional_metric_fns": PeerName(TFF, "", _METRICS),
        "metric_finalizers": PeerName(TFF, "", _METRICS),
        "assign_weights_to": PeerName(TFF, "keras_model.set_weights(weights.trainable)"),
        "from_model": PeerName(TFF, "process.set_model_weights(state, keras_model.get_weights())"),
        # TFF: optimizers.
        "build_sgdm": PeerName(TFF, "optimizers.sgd(0.02)", "with momentum=..., if you gave one"),
        "build_adam": PeerName(TFF, "optimizers.adam(0.01)"),
        "build_adamw": PeerName(TFF, "optimizers.adamw(0.01)"),
        "build_adagrad": PeerName(TFF, "optimizers.adagrad(0.1)"),
        "build_adafactor": PeerName(TFF, "optimizers.adafactor(0.001)"),
        "build_rmsprop": PeerName(TFF, "optimizers.rmsprop(0.01)"),
        "build_yogi": PeerName(TFF, "optimizers.yogi(0.01)"),
        "SGD": PeerName(KERAS, "optimizers.sgd(0.02)"),
        "Adam": PeerName(KERAS, "optimizers.adam(0.01)"),
        # TFF: algorithms.
        "build_weighted_fed_avg_with_optimizer_schedule": PeerName(
            TFF,
            'optimizers.schedule_learning_rate(optimizers.sgd(0.1), "cosine")',
            "the result is a client_optimizer",
        ),
        "build_weighted_fed_prox": PeerName(
            TFF, "learning.build_fed_prox(model, client_optimizer, proximal_strength=0.01)"
        ),
        "build_unweighted_fed_prox": PeerName(
            TFF,
            "learning.build_fed_prox(model, client_optimizer, proximal_strength=0.01, "
            'weighting="uniform")',
        ),
        "build_weighted_mime_lite": PeerName(
            TFF, "learning.build_mime_lite_with_optimizer(model, base_optimizer)"
        ),
        "build_unweighted_mime_lite": PeerName(
            TFF, 'learning.build_own("mime-lite", model, base_optimizer, weighting="uniform")'
        ),
        "build_federated_averaging_process": PeerName(
            TFF, "learning.build_weighted_fed_avg(model, client_optimizer)"
        ),
        "build_federated_evaluation": PeerName(TFF, _EVALUATION),
        "build_personalization_eval_computation": PeerName(
            TFF, "fedcli.personalization.evaluate_personalization"
        ),
        "ClientWeighting": PeerName(TFF, "", _UNIFORM_WEIGHTS),
        "LearningAlgorithmOutput": PeerName(TFF, "learning.ProcessOutput"),
        "LearningAlgorithmState": PeerName(TFF, "learning.ServerState"),
        "robust_aggregator": PeerName(TFF, 'aggregators.build("tff-robust")'),
        "dp_aggregator": PeerName(TFF, 'fedcli.RunConfig(dp="gaussian-adaptive")'),
        "compression_aggregator": PeerName(TFF, 'fedcli.RunConfig(compress="uniform")'),
        "secure_aggregator": PeerName(TFF, "fedcli.RunConfig(secure_sum=True)", "it is simulated"),
        "MeanFactory": PeerName(TFF, 'aggregators.build("mean")'),
        "UnweightedMeanFactory": PeerName(TFF, "", _UNIFORM_WEIGHTS),
        "SumFactory": PeerName(
            TFF, "", f"TFF's sum of updates has no counterpart in fedcli; {_OWN_PART}"
        ),
        "DifferentialPrivacyFactory": PeerName(TFF, 'fedcli.RunConfig(dp="gaussian")'),
        "clipping_factory": PeerName(TFF, 'aggregators.build("norm-bound")'),
        "zeroing_factory": PeerName(TFF, 'aggregators.build("tff-robust")', "it zeroes and clips"),
        "add_debug_measurements": PeerName(
            TFF, "fedcli.RunConfig(record_clients=True)", "or read result.client_stats"
        ),
        "model_aggregator": PeerName(TFF, "", _AGGREGATOR),
        "get_hparams": PeerName(TFF, "", _HPARAMS),
        "set_hparams": PeerName(TFF, "", _HPARAMS),
        "build_uniform_sampling_fn": PeerName(TFF, _ROUND_SAMPLING),
        "FileProgramStateManager": PeerName(TFF, "fedcli.train(config, out)", _SAVES_A_RUN),
        "FileCheckpointManager": PeerName(TFF, "fedcli.train(config, out)", _SAVES_A_RUN),
        "program": PeerName(TFF, "fedcli.train(config, out)", _SAVES_A_RUN),
        "programs": PeerName(TFF, "fedcli.train(config, out)", _SAVES_A_RUN),
        "analytics": PeerName(
            TFF,
            "",
            "TFF's analytics have no counterpart in fedcli; fedcli inspect-clients counts labels",
        ),
        **{
            name: PeerName(TFF, "", _NO_TYPES)
            for name in (
                *("framework", "types", "backends", "TensorType", "StructType", "SequenceType"),
                *("FederatedType", "FunctionType", "type_at_clients", "type_at_server", "CLIENTS"),
                *("SERVER", "to_type", "structure"),
            )
        },
        **{
            name: PeerName(TFF, "", f"{_NO_TYPES}; {_OWN_PART}")
            for name in (
                *("federated_mean", "federated_weighted_mean", "federated_map", "federated_sum"),
                *("federated_broadcast", "federated_value", "federated_eval", "federated_zip"),
                *("federated_aggregate", "federated_collect", "sequence_reduce"),
            )
        },
        "federated_computation": PeerName(TFF, "", f"{_NO_TYPES}; {_OWN_PART}"),
        "tf_computation": PeerName(TFF, "", f"{_NO_TYPES}; {_OWN_PART}"),
        "tensorflow_computation": PeerName(TFF, "", f"{_NO_TYPES}; {_OWN_PART}"),
        "summary": PeerName(TFF, "fedcli.RunConfig(tensorboard=True)", "it writes event files"),
        "templates": PeerName(TFF, "", f"{_NO_TYPES}; {_OWN_PART}"),
        # FedJAX.
        "InMemoryFederatedData": PeerName(FEDJAX, _IN_MEMORY),
        "get_client": PeerName(FEDJAX, "data.client(client_id)"),
        "get_clients": PeerName(FEDJAX, "[data.client(c) for c in client_ids]"),
        "num_clients": PeerName(FEDJAX, "len(data.client_ids)"),
        "shuffle_repeat_batch": PeerName(FEDJAX, _SHUFFLED_EPOCHS),
        "ShuffleRepeatBatchHParams": PeerName(FEDJAX, _SHUFFLED_EPOCHS),
        "PaddedBatchHParams": PeerName(FEDJAX, ".preprocess(batch_size=20)"),
        "create_conv_model": PeerName(FEDJAX, 'models.build("cnn-reddi")'),
        "create_dense_model": PeerName(FEDJAX, 'models.build("mlp-2nn")'),
        "create_logistic_model": PeerName(FEDJAX, 'models.build("softmax-regression")'),
        "federated_averaging": PeerName(
            FEDJAX, "learning.build_weighted_fed_avg(model, client_optimizer, server_optimizer)"
        ),
        "fed_avg": PeerName(
            FEDJAX, "learning.build_weighted_fed_avg(model, client_optimizer, server_optimizer)"
        ),
        "fed_prox": PeerName(
            FEDJAX, "learning.build_fed_prox(model, client_optimizer, proximal_strength=0.01)"
        ),
        "mime": PeerName(FEDJAX, "learning.build_mime(model, base_optimizer)"),
        "mime_lite": PeerName(
            FEDJAX, "learning.build_mime_lite_with_optimizer(model, base_optimizer)"
        ),
        "apply": PeerName(FEDJAX, "process.next(state, data)"),
        "init": PeerName(FEDJAX, "process.initialize()"),
        "client_samplers": PeerName(FEDJAX, _ROUND_SAMPLING),
        "UniformGetClientSampler": PeerName(FEDJAX, _ROUND_SAMPLING),
        "UniformShuffledClientSampler": PeerName(FEDJAX, 'fedcli.RunConfig(sampling="cyclic")'),
        "evaluate_model": PeerName(FEDJAX, _EVALUATION),
        "training": PeerName(FEDJAX, "fedcli.train(config, out)"),
        "save_checkpoint": PeerName(FEDJAX, "fedcli.train(config, out)", _SAVES_A_RUN),
        "load_latest_checkpoint": PeerName(FEDJAX, "fedcli.resume(path)"),
        "for_each_client_backend": PeerName(FEDJAX, "fedcli.RunConfig(threads=2)"),
        # Flower.
        "ServerApp": PeerName(FLOWER, "", _NO_PROCESSES),
        "ClientApp": PeerName(FLOWER, "", _NO_PROCESSES),
        "NumPyClient": PeerName(FLOWER, "", f"{_NO_PROCESSES}; your own algorithm: {_OWN_PART}"),
        "run_simulation": PeerName(FLOWER, "fedcli.train(config, out)"),
        "start_simulation": PeerName(FLOWER, "fedcli.train(config, out)"),
        "start_server": PeerName(FLOWER, "fedcli.train(config, out)"),
        "ServerConfig": PeerName(FLOWER, "fedcli.RunConfig(rounds=100)"),
        "FedAvg": PeerName(FLOWER, 'fedcli.RunConfig(algorithm="fedavg")'),
        "FedProx": PeerName(
            FLOWER,
            'fedcli.RunConfig(algorithm="fedprox", algorithm_options={"proximal_strength": 0.1})',
        ),
        "FedAvgM": PeerName(
            FLOWER,
            'fedcli.RunConfig(algorithm="fedavgm")',
            'its momentum is 0.9; server_options={"momentum": 0.5} sets another',
        ),
        "FedAdagrad": PeerName(FLOWER, 'fedcli.RunConfig(algorithm="fedadagrad")'),
        "FedAdam": PeerName(FLOWER, 'fedcli.RunConfig(algorithm="fedadam")'),
        "FedYogi": PeerName(FLOWER, 'fedcli.RunConfig(algorithm="fedyogi")'),
        "FedMedian": PeerName(FLOWER, 'fedcli.RunConfig(aggregator="median")'),
        "FedTrimmedAvg": PeerName(FLOWER, 'fedcli.RunConfig(aggregator="trimmed-mean")'),
        "Krum": PeerName(FLOWER, 'fedcli.RunConfig(aggregator="krum")'),
        "Bulyan": PeerName(FLOWER, 'fedcli.RunConfig(aggregator="bulyan")'),
        "DifferentialPrivacyServerSideFixedClipping": PeerName(
            FLOWER, 'fedcli.RunConfig(dp="gaussian")'
        ),
        "FederatedDataset": PeerName(FLOWER, 'datasets.load("mnist", partition="iid")'),
        "IidPartitioner": PeerName(FLOWER, 'fedcli.RunConfig(partition="iid")'),
        "DirichletPartitioner": PeerName(FLOWER, 'fedcli.RunConfig(partition="dirichlet-class")'),
        "InnerDirichletPartitioner": PeerName(
            FLOWER, 'fedcli.RunConfig(partition="dirichlet-client")'
        ),
        "PathologicalPartitioner": PeerName(
            FLOWER, 'fedcli.RunConfig(partition="classes-per-client")'
        ),
        "ShardPartitioner": PeerName(FLOWER, 'fedcli.RunConfig(partition="shards")'),
        "NaturalIdPartitioner": PeerName(FLOWER, 'fedcli.RunConfig(partition="natural")'),
        "LinearPartitioner": PeerName(FLOWER, 'fedcli.RunConfig(partition="quantity-linear")'),
        "ExponentialPartitioner": PeerName(
            FLOWER, 'fedcli.RunConfig(partition="quantity-exponential")'
        ),
        "History": PeerName(FLOWER, "fedcli.load_run(path).columns"),
        "train_metrics_clientapp": PeerName(FLOWER, "fedcli.load_run(path).columns"),
        # Keras.
        "MaxPooling2D": PeerName(KERAS, "layers.MaxPool2D"),
        "AveragePooling2D": PeerName(KERAS, "layers.AveragePool2D"),
        "GlobalAveragePooling2D": PeerName(KERAS, "layers.GlobalAveragePool2D"),
        "GlobalMaxPooling2D": PeerName(KERAS, "layers.GlobalMaxPool2D"),
        "BatchNormalization": PeerName(KERAS, "layers.BatchNorm"),
        "GroupNormalization": PeerName(KERAS, "layers.GroupNorm"),
        "LayerNormalization": PeerName(KERAS, "layers.LayerNorm"),
        "ZeroPadding2D": PeerName(KERAS, "layers.ZeroPad2D"),
        "ReLU": PeerName(KERAS, 'layers.Activation("relu")'),
        "InputLayer": PeerName(KERAS, "layers.Input(shape)"),
        "Softmax": PeerName(KERAS, "", "leave it out: the loss applies a softmax"),
        "load_model": PeerName(KERAS, _KERAS_FILE),
        "from_keras": PeerName(KERAS, _KERAS_FILE, 'after keras_model.save("model.keras")'),
        "Reshape": PeerName(
            KERAS,
            "",
            "leave it out: layers.Input(shape), first in models.sequential, gives images their "
            "shape, and layers.Flatten flattens",
        ),
        "Lambda": PeerName(KERAS, "own_models.OwnModel", "see fedcli help models"),
        **{name: PeerName(KERAS, "", _NO_TEXT) for name in ("Embedding", "LSTM", "GRU")},
        "Sequential": PeerName(KERAS, "models.sequential(layers, input_shape)"),
        "Rescaling": PeerName(KERAS, "layers.Normalization(mean, std)"),
        "RandomTranslation": PeerName(KERAS, "layers.RandomCrop(height, width, padding)"),
        "compile": PeerName(KERAS, "learning.build_weighted_fed_avg(model, client_optimizer)"),
        "fit": PeerName(KERAS, "fedcli.train(config, out, model=model)"),
        "evaluate": PeerName(KERAS, _EVALUATION),
    }
)

_SAVES = PeerName(KERAS, "", "fedcli export RUN model.keras writes the model of a run")
_WEIGHTS = PeerName(
    KERAS,
    "model.layout.split(model.initial_params)",
    "process.get_model_weights(state) has trained ones",
)
_SHAPES = PeerName(KERAS, "model.layout.input_shape", "and model.layout.num_classes")

# Attributes of a model alone; they have other meanings elsewhere, or none.
OF_MODELS: Mapping[str, PeerName] = MappingProxyType(
    {
        "summary": PeerName(KERAS, "print(model)", "model.layout.layers lists the layers"),
        "count_params": PeerName(KERAS, "model.layout.num_params"),
        "num_params": PeerName(KERAS, "model.layout.num_params"),
        "layers": PeerName(KERAS, "model.layout.layers"),
        "input_shape": _SHAPES,
        "output_shape": _SHAPES,
        "get_weights": _WEIGHTS,
        "weights": _WEIGHTS,
        "variables": _WEIGHTS,
        "trainable_weights": _WEIGHTS,
        "trainable_variables": _WEIGHTS,
        "set_weights": PeerName(KERAS, "process.set_model_weights(state, arrays)"),
        "load_weights": PeerName(KERAS, 'fedcli.RunConfig(initial_weights="weights.npz")'),
        "predict": PeerName(
            KERAS,
            "fedcli.evaluate_run(path, prediction_callbacks=[function])",
            "or fedcli eval RUN --predictions FILE",
        ),
        "save": _SAVES,
        "save_weights": _SAVES,
        "export": _SAVES,
        "to_json": PeerName(KERAS, "model.layout.description()"),
        "get_config": PeerName(KERAS, "model.layout.description()"),
        "add": PeerName(KERAS, "", "give models.sequential the list of all layers"),
    }
)

# Attributes of data alone.
OF_DATA: Mapping[str, PeerName] = MappingProxyType(
    {"datasets": PeerName(TFF, "[data.client(c) for c in data.client_ids]")}
)
# Attributes of the objects of these classes, and of this module, alone.
OF_OBJECTS: Mapping[str, Mapping[str, PeerName]] = MappingProxyType(
    {
        "a Model": OF_MODELS,
        "a PythonModel": OF_MODELS,
        "a BatchedDataset": {
            "take": PeerName(
                TFF,
                "list(batches)[:2]",
                "these are batches; .preprocess(max_examples=40) ends after 40 examples, with all "
                "epochs counted together",
            ),
        },
        "module 'fedcli.learning'": {
            "algorithms": PeerName(
                TFF,
                "",
                "the functions of tff.learning.algorithms are in fedcli.learning itself, such as "
                "fedcli.learning.build_weighted_fed_avg; for an algorithm of your own, "
                "fedcli.algorithms has the base classes",
            ),
        },
        "a ServerState": {
            "model": PeerName(
                TFF, "process.get_model_weights(state)", "state.global_model_weights is one array"
            ),
        },
    }
)

_OURS = "leave it out"
_INITIALIZER = PeerArgument(
    (),
    "its weights start as Keras draws them (kernels glorot_uniform, biases 0); Dense and Conv2D "
    "take an initializer, and process.set_model_weights(state, arrays) or "
    "RunConfig(initial_weights=FILE) gives any others",
)
_PENALTY = PeerArgument(
    ("weight_decay",),
    "RunConfig(client_weight_decay=X) penalizes all weights, with half of X times their squares",
)
_CONSTRAINT = PeerArgument((), f"{_OURS}: weights are not constrained")
_LOSS = PeerArgument((), f"{_OURS}: the loss is the cross-entropy of the last layer's logits")
_WITHOUT = PeerArgument((), f"{_OURS}: there is one way to run a round")
_GRAPHS = (
    "models.functional(output) makes a model, with output = layers.Dense(10)(layers.Input(shape))"
)
_SHARE = PeerArgument((), 'write clients=0.1 with sampling="uniform" for a tenth in each round')

# Keyword arguments of functions and classes, and options of a RunConfig.
ARGUMENTS: Mapping[str, PeerArgument] = MappingProxyType(
    {
        # Earlier versions of fedcli.
        "takers": PeerArgument(("prediction_callbacks",)),
        # TFF.
        "model_fn": PeerArgument(("model",)),
        "client_optimizer_fn": PeerArgument(("client_optimizer",)),
        "server_optimizer_fn": PeerArgument(("server_optimizer",)),
        "base_optimizer_fn": PeerArgument(("base_optimizer",)),
        "optimizer": PeerArgument(("client_optimizer", "server_optimizer")),
        "client_weighting": PeerArgument(("weighting",), _UNIFORM_WEIGHTS),
        "model_aggregator": PeerArgument(("aggregator",), _AGGREGATOR),
        "aggregator": PeerArgument((), _AGGREGATOR),
        "model_update_aggregation_factory": PeerArgument(("aggregator",), _AGGREGATOR),
        "model_distributor": PeerArgument((), f"{_OURS}: the server sends the model as it is"),
        "use_experimental_simulation_loop": _WITHOUT,
        "loop_implementation": _WITHOUT,
        "loss_fn": _LOSS,
        "loss": _LOSS,
        "metrics_constructor": PeerArgument(
            (), f"{_OURS}: loss, accuracy and counts are always computed; see fedcli help metrics"
        ),
        "input_spec": PeerArgument((), f"{_OURS}: the model's layers say what they take"),
        "keras_model": PeerArgument(("model",)),
        "only_digits": PeerArgument((), 'the data set "emnist-digits" has the digits alone'),
        "cache_dir": PeerArgument((), f"{_OURS}: fedcli download keeps data in its own cache"),
        "num_epochs": PeerArgument(("epochs",)),
        "repeat": PeerArgument(("epochs",)),
        "shuffle": PeerArgument(("shuffle_buffer",)),
        "buffer_size": PeerArgument(("shuffle_buffer",)),
        "batch": PeerArgument(("batch_size",)),
        "take": PeerArgument(("max_examples",)),
        "max_elements": PeerArgument(("max_examples",)),
        "drop_remainder": PeerArgument((), f"{_OURS}: the last batch is smaller, as in TFF"),
        # Keras.
        "kernel_initializer": _INITIALIZER,
        "bias_initializer": _INITIALIZER,
        "gamma_initializer": _INITIALIZER,
        "beta_initializer": _INITIALIZER,
        "depthwise_initializer": _INITIALIZER,
        "kernel_regularizer": _PENALTY,
        "bias_regularizer": _PENALTY,
        "activity_regularizer": _PENALTY,
        "kernel_constraint": _CONSTRAINT,
        "bias_constraint": _CONSTRAINT,
        "input_shape": PeerArgument((), _SHAPE_GOES_IN),
        "input_dim": PeerArgument((), _SHAPE_GOES_IN),
        "classes": PeerArgument(("num_classes",)),
        "outputs": PeerArgument(("logits",), _GRAPHS),
        "layers": PeerArgument(("specs",)),
        "inputs": PeerArgument((), _GRAPHS),
        "axis": PeerArgument((), f"{_OURS}: layers act on the last axis, the channels"),
        "dilation_rate": PeerArgument((), f"{_OURS}: windows have no gaps"),
        "data_format": PeerArgument((), f"{_OURS}: images are [height, width, channels]"),
        "dtype": PeerArgument((), f"{_OURS}: fedcli computes in float32"),
        "trainable": PeerArgument((), f"{_OURS}: all weights are trained"),
        "seed": PeerArgument((), "models.sequential(layers, input_shape, seed=1) takes one"),
        # FedJAX, Optax, PyTorch and papers.
        "lr": PeerArgument(("learning_rate", "client_lr", "server_lr")),
        "learning_rate": PeerArgument(("client_lr", "server_lr", "server_learning_rate")),
        "eta": PeerArgument(("learning_rate", "server_lr", "server_learning_rate")),
        "eta_l": PeerArgument(("client_lr",)),
        "rate": PeerArgument(("learning_rate",)),
        "step_size": PeerArgument(("learning_rate",)),
        "beta1": PeerArgument(("beta_1",)),
        "b1": PeerArgument(("beta_1",)),
        "beta2": PeerArgument(("beta_2",)),
        "b2": PeerArgument(("beta_2",)),
        "eps": PeerArgument(("epsilon",)),
        "tau": PeerArgument(("epsilon",)),
        "wd": PeerArgument(("weight_decay", "client_weight_decay")),
        "l2": PeerArgument(("weight_decay", "client_weight_decay")),
        "alpha": PeerArgument(("negative_slope", "decay")),
        "rho": PeerArgument(("decay",)),
        "mu": PeerArgument(
            ("proximal_strength",), 'write algorithm_options={"proximal_strength": 0.1}'
        ),
        "grad_fn": PeerArgument(("model",)),
        "proximal_weight": PeerArgument(("proximal_strength",)),
        # Flower.
        "num_rounds": PeerArgument(("rounds",)),
        "rounds": PeerArgument(("num_rounds",)),
        "local_epochs": PeerArgument(("epochs",)),
        "fraction_fit": _SHARE,
        "fraction_train": _SHARE,
        "fraction_evaluate": PeerArgument(("eval_clients",)),
        "evaluate_fn": PeerArgument(("eval_every",)),
        "train_config": PeerArgument((), "write client_lr= and epochs="),
        "backend_config": PeerArgument(("threads",)),
        "min_fit_clients": PeerArgument(("clients",)),
        "proximal_mu": PeerArgument(
            ("proximal_strength",), 'write algorithm_options={"proximal_strength": 0.1}'
        ),
        "strategy": PeerArgument(("algorithm",)),
        "num_partitions": PeerArgument((), 'write partition_options={"clients": 100}'),
        "partitioner": PeerArgument(("partition",)),
        "server_momentum": PeerArgument(
            ("server_options",), 'write server_options={"momentum": 0.9}'
        ),
    }
)

# The modules in which a name that is missing elsewhere may be found.
_PUBLIC_MODULES = (
    *("fedcli", "fedcli.learning", "fedcli.models", "fedcli.datasets", "fedcli.optimizers"),
    *("fedcli.aggregators", "fedcli.algorithms", "fedcli.layers", "fedcli.own_models"),
)


def about_name(name: str, known: Collection[str], owner: str = "") -> str:
    """Returns the end of a message about a name that a module or an object does not have.

    Args:
        name: The missing name.
        known: The names that there are.
        owner: The module or object as the message calls it, such as "a Model".
    """
    is_data = {"client", "labels", "element_spec"} <= {*known}
    of_owner = OF_DATA if is_data else OF_OBJECTS.get(owner, {})
    if name in of_owner:
        return f"; {of_owner[name]}"
    if name in NAMES:
        return f"; {NAMES[name]}"
    modules = [module for module in _PUBLIC_MODULES if name in load(module).__all__]
    return f"; it is {modules[0]}.{name}" if modules else did_you_mean(name, known)


def about_argument(name: str, known: Collection[str]) -> str:
    """Returns the end of a message about an argument that a function does not have.

    Args:
        name: The argument.
        known: The arguments that the function has.
    """
    peer = ARGUMENTS.get(name, PeerArgument(()))
    here = [each for each in peer.ours if each in known]
    if here:
        return f"; write {' or '.join(f'{each}=' for each in here)}"
    if peer.why:
        return f"; {peer.why}"
    if "config" in known and name in load("fedcli.settings.run_config:OPTIONS"):
        return f"; write RunConfig({name}=...) as config"
    if "options" in known:
        its_options = f"; if it is an option of what is built, write options={{{name!r}: ...}}"
        return did_you_mean(name, known) or its_options
    return did_you_mean(name, known) or f"; it takes {', '.join(known)}"


# Options of a run whose values are confused with each other, and the tables of these values.
_TABLES = {
    "--algorithm": "ALGORITHMS",
    "--aggregator": "AGGREGATORS",
    "--client-optimizer": "OPTIMIZERS",
    "--server-optimizer": "OPTIMIZERS",
    "--sampling": "SAMPLERS",
    "--partition": "PARTITIONS",
    "--compress": "COMPRESSORS",
    "--dp": "PRIVACY",
}


# What every round and evaluation measures, in lower case without hyphens, as `letters_of` gives it.
_ALWAYS_MEASURED = ("accuracy", "loss", "sparsecategoricalaccuracy", "numexamples", "numbatches")


def about_value(option: str, value: str, known: Collection[str]) -> str:
    """Returns the end of a message about a value that an option does not have.

    Args:
        option: The option as the message names it, such as --algorithm.
        value: The value.
        known: The values that there are.
    """
    if option == "--metrics" and letters_of(value) in _ALWAYS_MEASURED:
        return "; loss and accuracy are always measured, so leave it out"
    letters = letters_of(value)
    same = {letters_of(each): each for each in known}
    if option not in _TABLES or letters in same:
        return did_you_mean(value, known)
    builder = re.fullmatch(r"(?:build)?(un)?weighted(\w+)", letters)  # as in TFF
    if builder and builder[2] in same:
        weighting = " --client-weighting uniform" if builder[1] else ""
        return f"; in place of {TFF}'s, write {option} {same[builder[2]]}{weighting}"
    for name, peer in NAMES.items():
        called = re.fullmatch(r"optimizers\.(\w+)\(.*\)", peer.code)
        if letters_of(name) == letters and called and called[1] in known:
            flag = f"{option.removesuffix('optimizer')}option"
            why = f" ({re.sub(r'(?=momentum=)', f'{flag} ', peer.why)})" if peer.why else ""
            return f"; in place of {peer.program}'s, write {option} {called[1]}{why}"
        values = re.fullmatch(r'fedcli\.RunConfig\((\w+)="([\w-]+)"\)', peer.code)
        if letters_of(name) == letters and values:
            return f"; in place of {peer.program}'s, write --{values[1]} {values[2]}"
    return _other_options(letters) or did_you_mean(value, known)


def _other_options(letters: str) -> str:
    """The end of a message about a value that other options have; empty if there are none."""
    found = [
        (option, name)
        for option, table in _TABLES.items()
        for name in load(f"fedcli.settings.tables:{table}")
        if letters_of(name) == letters
    ]
    if not found:
        return ""
    return f"; {found[0][1]} is a value of {' and '.join(option for option, _ in found)}"
