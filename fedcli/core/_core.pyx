# SPDX-License-Identifier: Apache-2.0
"""The boundary to the C core: checks arguments, calls without the GIL, maps statuses to errors."""

from libc.stddef cimport size_t
from libc.stdint cimport (
    INT64_MAX, SIZE_MAX, UINT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
)
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from fedcli.core._fed cimport *

import math
import os

import numpy as np


class CoreError(Exception):
    """An error status of the C core."""


class LabelFault(CoreError):
    """A label outside the classes, with client_index, example_index and label."""

    def __init__(self, client_index, example_index, label):
        super().__init__(f"label {label} of example {example_index} of client {client_index}")
        self.client_index, self.example_index, self.label = client_index, example_index, label


class ChangedFault(CoreError):
    """Labels were changed while a call was using them."""


class PayloadFault(CoreError):
    """Bytes that no encoder of a codec writes."""


class Cancelled(Exception):
    """The cancel flag was set while the core was running."""


cdef check(int status, const fed_fault *fault=NULL):
    """Raises the exception for a status; returns for FED_OK."""
    if status == FED_OK:
        return
    if status == FED_ERR_NO_MEMORY:
        raise MemoryError(fed_strerror(status).decode())
    if status == FED_ERR_CANCELLED:
        raise Cancelled(fed_strerror(status).decode())
    if status == FED_ERR_LABEL and fault != NULL:
        raise LabelFault(fault.client_index, fault.example_index, fault.label)
    if status == FED_ERR_CHANGED:
        raise ChangedFault(fed_strerror(status).decode())
    if status == FED_ERR_PAYLOAD:
        raise PayloadFault(fed_strerror(status).decode())
    raise CoreError(fed_strerror(status).decode())


# ---- Instruction set: chosen here, once ----------------------------------------------------------

cdef choose_isa():
    wanted = os.environ.get("FEDCLI_ISA")
    name = wanted.encode() if wanted else None
    if fed_select_isa(<const char *> name if name is not None else NULL) != FED_OK:
        raise ImportError(
            f"FEDCLI_ISA={wanted} names no instruction set of this build and machine;"
            f" choose one of {', '.join(ISAS)}, or unset it"
        )

ISAS = tuple(name for name in ("generic", "avx2", "avx512") if fed_isa_runs(name.encode()))
choose_isa()
ISA = fed_isa_name().decode()
HAS_OPENMP = bool(fed_has_openmp())
MAX_LAYERS = FED_MAX_LAYERS


def fma_chain(size_t num_steps):
    """Runs fused multiply-adds on one thread; returns the floating-point operations done."""
    cdef double operations
    with nogil:
        operations = fed_fma_chain(num_steps)
    return operations


# ---- Values that cross the boundary --------------------------------------------------------------

# A memoryview does not guarantee alignment, but the core's vector loads rely on that of the type.

cdef check_floats(const float *values, what):
    """Rejects values [..] that are not aligned as a float must be."""
    if <size_t> values % sizeof(float) != 0:
        raise ValueError(f"{what} are not aligned to {sizeof(float)} bytes; give a copy")


cdef check_doubles(const double *values, what):
    """Rejects values [..] that are not aligned as a double must be."""
    if <size_t> values % sizeof(double) != 0:
        raise ValueError(f"{what} are not aligned to {sizeof(double)} bytes; give a copy")


cdef class Exclusive:
    """An object that one call at a time may use; calls release the GIL while the core runs."""
    cdef bint is_in_use

    cdef take(self):
        if self.is_in_use:
            raise RuntimeError(f"this {type(self).__name__} is in use by another call")
        self.is_in_use = True

    cdef give_back(self):
        self.is_in_use = False


cdef fed_key make_key(key):
    cdef fed_key made
    made.seed, made.client, made.round, made.purpose, made.occurrence = key
    return made


cdef class CancelFlag:
    """A flag that any thread or signal handler may set to stop a call within a local step.

    It also counts the clients that calls of train_cohort have trained so far.
    """
    cdef atomic_int flag
    cdef atomic_int trained

    def set(self):
        atomic_store(&self.flag, 1)

    def clear(self):
        atomic_store(&self.flag, 0)

    def is_set(self):
        return atomic_load(&self.flag) != 0

    @property
    def num_trained(self):
        return atomic_load(&self.trained)

    @num_trained.setter
    def num_trained(self, int value):
        atomic_store(&self.trained, value)


cdef fed_shape make_shape(shape):
    cdef fed_shape made
    made.height, made.width, made.channels = shape
    return made


cdef fed_layer make_layer(row):
    """Makes a row of a model table from the fields of fed_layer in order, with the kind's name and
    nested shapes."""
    cdef fed_layer made
    (kind, made.activation, shape_in, shape_out, made.offset, made.has_scale, made.has_bias,
     made.window_height, made.window_width, made.stride_y, made.stride_x, made.pad_top,
     made.pad_left, made.num_groups, made.epsilon, made.rate) = row
    made.kind = fed_layer_kind_named(kind.encode())
    made.in_, made.out = make_shape(shape_in), make_shape(shape_out)
    return made


cdef class Model:
    """A model table; rows hold the fields of fed_layer in order."""
    cdef fed_model table
    cdef fed_layer *layers

    def __cinit__(self, layers, size_t num_params):
        cdef fed_shape ins, outs
        layers = list(layers)  # a copy whose length cannot change
        self.layers = <fed_layer *> calloc(max(len(layers), 1), sizeof(fed_layer))
        if self.layers == NULL:
            raise MemoryError
        for i, row in enumerate(layers):
            self.layers[i] = make_layer(row)
        self.table.layers = self.layers
        self.table.num_layers = len(layers)
        if len(layers) > 0:
            ins, outs = self.layers[0].in_, self.layers[len(layers) - 1].out
            self.table.num_inputs = ins.height * ins.width * ins.channels
            self.table.num_classes = outs.height * outs.width * outs.channels
            self.table.num_params = num_params
        check(fed_model_check(&self.table))

    def __dealloc__(self):
        free(self.layers)

    cdef check_params(self, const float[::1] params):
        if <size_t> params.shape[0] != self.table.num_params:
            raise ValueError(f"{params.shape[0]} parameters given, but the model has"
                             f" {self.table.num_params}")
        check_floats(&params[0], "parameters")


cdef fed_tensor make_tensor(shape):
    """Describes a tensor as matrices over its last two axes, or as a vector."""
    cdef fed_tensor made
    if len(shape) > 1 and math.prod(shape) > 0:
        *others, made.num_rows, made.num_columns = shape
        made.num_matrices = math.prod(others)
    else:
        made.num_matrices, made.num_rows, made.num_columns = 1, 0, math.prod(shape)
    return made


cdef class Step:
    """A step table. Rows are (kind, options) with at most 8 options. Shapes are those of the
    model's tensors, for rows that treat each tensor separately."""
    cdef fed_step table
    cdef fed_step_row *rows
    cdef fed_tensors tensors
    cdef fed_tensor *each

    def __cinit__(self, rows, shapes=()):
        rows, shapes = list(rows), list(shapes)
        self.rows = <fed_step_row *> calloc(max(len(rows), 1), sizeof(fed_step_row))
        self.each = <fed_tensor *> calloc(max(len(shapes), 1), sizeof(fed_tensor))
        if self.rows == NULL or self.each == NULL:
            raise MemoryError
        for t, shape in enumerate(shapes):
            self.each[t] = make_tensor(tuple(shape))
        self.tensors.each = self.each
        self.tensors.num = len(shapes)
        for r, (kind, options) in enumerate(rows):
            options = tuple(options)
            if len(options) > 8:
                raise ValueError(f"a client-step row has at most 8 options, not {len(options)}")
            self.rows[r].kind = kind
            for o, value in enumerate(options):
                self.rows[r].options[o] = value
        self.table.rows = self.rows
        self.table.num_rows = len(rows)
        check(fed_step_check(&self.table))

    def __dealloc__(self):
        free(self.rows)
        free(self.each)

    @property
    def num_slots(self):
        return fed_step_slots(&self.table)

    def initial_slots(self, size_t num_params):
        """The slots before a client's first local step: float32 [num_slots, P]."""
        slots = np.empty((self.num_slots, num_params), np.float32)
        cdef float[:, ::1] view = slots
        if slots.size > 0:  # an empty array has no first element
            fed_step_init_slots(&self.table, num_params, &view[0, 0])
        return slots

    def apply(self, size_t step_num, float[::1] params not None,
              const float[::1] server_params not None, float[::1] gradient not None,
              float[:, ::1] slots not None):
        """Takes local step number step_num in place and overwrites gradient."""
        cdef size_t num_params = params.shape[0]
        if not (server_params.shape[0] == gradient.shape[0] == params.shape[0]):
            raise ValueError(f"lengths of params, server_params and gradient: {params.shape[0]},"
                             f" {server_params.shape[0]}, {gradient.shape[0]}")
        if slots.shape[0] != self.num_slots or slots.shape[1] != params.shape[0]:
            raise ValueError(f"slots are [{slots.shape[0]}, {slots.shape[1]}],"
                             f" not [{self.num_slots}, {num_params}]")
        if num_params == 0:
            return
        check_floats(&params[0], "params")
        check_floats(&server_params[0], "server_params")
        check_floats(&gradient[0], "gradients")
        if slots.shape[0] > 0:
            check_floats(&slots[0, 0], "slots")
        check(fed_step_apply(&self.table, &self.tensors, step_num, num_params, &params[0],
                             &server_params[0], &gradient[0],
                             &slots[0, 0] if slots.shape[0] > 0 else NULL))


cdef class Plan:
    """How a client's examples become batches; shuffle_buffer -1 is full, max_examples -1 is all."""
    cdef fed_plan plan

    def __cinit__(self, int pipeline, size_t epochs, size_t batch_size, int64_t shuffle_buffer,
                  int64_t max_examples):
        if not FED_REPEAT_SHUFFLE <= pipeline <= FED_PER_EPOCH or epochs < 1 or batch_size < 1:
            raise ValueError(f"pipeline {pipeline}, {epochs} epochs, batches of {batch_size}: the"
                             f" first is {FED_REPEAT_SHUFFLE} to {FED_PER_EPOCH}, others 1 or more")
        self.plan = fed_plan(pipeline, epochs, batch_size,
                             SIZE_MAX if shuffle_buffer < 0 else <size_t> shuffle_buffer,
                             SIZE_MAX if max_examples < 0 else <size_t> max_examples)

    def visits(self, size_t num_examples):
        check_num_examples(num_examples)
        return fed_plan_visits(&self.plan, num_examples)

    def batches(self, size_t num_examples):
        check_num_examples(num_examples)
        return fed_plan_batches(&self.plan, num_examples)


cdef check_num_examples(size_t num_examples):
    if num_examples > UINT32_MAX:
        raise ValueError(f"{num_examples} examples: a client has at most {UINT32_MAX}")


cdef class Client:
    """One client's data. The arrays are referenced, not copied, and must not be written during a
    call. Each call replaces the round in the two keys by its own."""
    cdef fed_client table
    cdef size_t num_values  # pixels of all examples together
    cdef object keep

    def __cinit__(self, pixels, const int32_t[::1] labels not None, float scale, float offset,
                  Plan plan not None, shuffle_key, dropout_key):
        cdef const uint8_t[::1] bytes_of
        cdef const float[::1] floats_of
        check_num_examples(labels.shape[0])
        self.table.num_examples = labels.shape[0]
        flat = np.asarray(pixels).reshape(-1)
        if flat.size > 0 and len(pixels) != labels.shape[0]:
            raise ValueError(f"{len(pixels)} images but {labels.shape[0]} labels")
        if flat.dtype == np.uint8:
            bytes_of = flat
            self.table.pixel_type = FED_PIXELS_UINT8
            self.table.pixels = &bytes_of[0] if flat.size else NULL
        else:
            floats_of = flat
            self.table.pixel_type = FED_PIXELS_FLOAT32
            self.table.pixels = &floats_of[0] if flat.size else NULL
            check_floats(<const float *> self.table.pixels, "pixels")
        if labels.shape[0] > 0 and <size_t> &labels[0] % sizeof(int32_t) != 0:
            raise ValueError(f"labels are not aligned to {sizeof(int32_t)} bytes; give a copy")
        self.table.labels = &labels[0] if labels.shape[0] else NULL
        self.table.scale, self.table.offset = scale, offset
        self.table.plan = plan.plan
        self.table.shuffle_key = make_key(shuffle_key)
        self.table.dropout_key = make_key(dropout_key)
        self.num_values = flat.size
        self.keep = (flat, labels)


cdef class Cohort(Exclusive):
    """An array of clients in the form that the core reads."""
    cdef fed_client *table
    cdef fed_own *own
    cdef size_t num_clients
    cdef object clients
    cdef Model prepared_for

    def __cinit__(self, clients):
        cdef Client client
        self.clients = tuple(clients)
        self.num_clients = len(self.clients)
        self.table = <fed_client *> calloc(max(self.num_clients, 1), sizeof(fed_client))
        self.own = <fed_own *> calloc(max(self.num_clients, 1), sizeof(fed_own))
        if self.table == NULL or self.own == NULL:
            raise MemoryError
        for c, client in enumerate(self.clients):
            if client is None:
                raise TypeError(f"client {c} is None")
            self.table[c] = client.table
            self.table[c].own = &self.own[c]

    def __dealloc__(self):
        cdef size_t c
        if self.table != NULL:
            for c in range(self.num_clients):
                fed_prepared_free(<fed_prepared *> self.table[c].prepared)
        free(self.table)
        free(self.own)

    cdef set_own(self, size_t num_params, const float[:, ::1] linear, float[:, ::1] deltas,
                 const double[::1] factors, const float[:, ::1] starts):
        """Points each client to its rows; a single row of `linear` is for all clients."""
        cdef size_t c
        if linear is not None and (linear.shape[0] not in (1, self.num_clients)
                                   or <size_t> linear.shape[1] != num_params):
            raise ValueError(f"linear is [{linear.shape[0]}, {linear.shape[1]}], not"
                             f" [1 or {self.num_clients}, {num_params}]")
        if deltas is not None and (<size_t> deltas.shape[0] != self.num_clients
                                   or <size_t> deltas.shape[1] != num_params):
            raise ValueError(f"deltas are [{deltas.shape[0]}, {deltas.shape[1]}], not"
                             f" [{self.num_clients}, {num_params}]")
        if starts is not None and (<size_t> starts.shape[0] != self.num_clients
                                   or <size_t> starts.shape[1] != num_params):
            raise ValueError(f"starts are [{starts.shape[0]}, {starts.shape[1]}], not"
                             f" [{self.num_clients}, {num_params}]")
        if factors is not None and <size_t> factors.shape[0] != self.num_clients:
            raise ValueError(f"{factors.shape[0]} factors for {self.num_clients} clients")
        if self.num_clients == 0:
            return
        if linear is not None:
            check_floats(&linear[0, 0], "linear terms")
        if deltas is not None:
            check_floats(&deltas[0, 0], "deltas")
        if starts is not None:
            check_floats(&starts[0, 0], "starts")
        if factors is not None:
            check_doubles(&factors[0], "factors")
        for c in range(self.num_clients):
            self.own[c].linear = NULL
            if linear is not None:
                self.own[c].linear = &linear[c if linear.shape[0] > 1 else 0, 0]
            self.own[c].delta = &deltas[c, 0] if deltas is not None else NULL
            self.own[c].start = &starts[c, 0] if starts is not None else NULL
            self.own[c].delta_factor = 0.0 if starts is not None else 1.0
            if factors is not None:
                self.own[c].delta_factor = factors[c]

    cdef forget_own(self):
        """Clears the pointers to rows, which may be freed after the call."""
        memset(self.own, 0, self.num_clients * sizeof(fed_own))

    def prepare(self, Model model not None):
        """Decodes pixels once for all rounds of training with `model`: four bytes per pixel."""
        self.take()
        try:
            self.prepare_each(model)
        finally:
            self.give_back()

    cdef prepare_each(self, Model model):
        cdef size_t c
        self.check_pixels(model.table.num_inputs)
        if self.prepared_for is not None and self.prepared_for is not model:
            raise ValueError("the cohort was prepared for another model")
        self.prepared_for = model
        for c in range(self.num_clients):
            if self.table[c].prepared == NULL:
                self.table[c].prepared = fed_prepare(&model.table, &self.table[c])
            if self.table[c].prepared == NULL:
                raise MemoryError

    cdef check_pixels(self, size_t num_inputs):
        cdef Client client
        for c, client in enumerate(self.clients):
            if client.num_values != client.table.num_examples * num_inputs:
                raise ValueError(f"client {c} has {client.num_values} pixel values in"
                                 f" {client.table.num_examples} examples, but the model takes"
                                 f" {num_inputs} per example")


cdef class DeltaSum(Exclusive):
    """The ordered, weighted, float64 sum of a cohort's model deltas."""
    cdef fed_sum *sum
    cdef Model model

    def __cinit__(self, Model model not None):
        self.model = model
        self.sum = fed_sum_new_of(&model.table)
        if self.sum == NULL:
            raise MemoryError

    def __dealloc__(self):
        fed_sum_free(self.sum)

    def reset(self):
        """Empties the sum, keeps its memory."""
        self.take()
        fed_sum_reset(self.sum)
        self.give_back()

    def total(self):
        """The sum of weight * delta, float64 [P], and the sum of the weights."""
        cdef double weight
        total = np.empty(self.model.table.num_params, np.float64)
        cdef double[::1] view = total
        self.take()
        fed_sum_total(self.sum, &view[0], &weight)
        self.give_back()
        return total, weight


cdef class VectorSum(Exclusive):
    """The ordered, weighted, float64 sum of vectors, float32 [num_values]."""
    cdef fed_sum *sum
    cdef size_t num_values

    def __cinit__(self, size_t num_values):
        self.num_values = num_values
        self.sum = fed_sum_new(num_values)
        if self.sum == NULL:
            raise MemoryError

    def __dealloc__(self):
        fed_sum_free(self.sum)

    def add(self, vectors, const double[::1] weights not None):
        """Adds the vectors of a list in turn."""
        cdef size_t i, num_vectors
        cdef const float[::1] vector
        cdef const float **starts
        cdef int status
        held = [memoryview(each) for each in vectors]  # keeps their memory in place during the call
        num_vectors = len(held)
        if <size_t> weights.shape[0] != num_vectors:
            raise ValueError(f"{weights.shape[0]} weights for {num_vectors} vectors")
        if num_vectors == 0 or self.num_values == 0:
            return
        check_doubles(&weights[0], "weights")
        starts = <const float **> malloc(num_vectors * sizeof(float *))
        if starts == NULL:
            raise MemoryError
        try:
            for i in range(num_vectors):
                vector = held[i]
                if <size_t> vector.shape[0] != self.num_values:
                    raise ValueError(f"vector {i} is [{vector.shape[0]}], not [{self.num_values}]")
                check_floats(&vector[0], f"values of vector {i}")
                starts[i] = &vector[0]
            self.take()
            with nogil:
                status = fed_sum_add(self.sum, starts, &weights[0], num_vectors)
            self.give_back()
        finally:
            free(starts)
        check(status)

    def reset(self):
        """Empties the sum, keeps its memory."""
        self.take()
        fed_sum_reset(self.sum)
        self.give_back()

    def total(self):
        """The sum of weight * vector, float64 [num_values], and the sum of the weights."""
        cdef double weight
        total = np.zeros(self.num_values, np.float64)
        cdef double[::1] view = total
        self.take()
        fed_sum_total(self.sum, &view[0] if self.num_values > 0 else NULL, &weight)
        self.give_back()
        return total, weight


STATS = np.dtype(
    [("loss_sum", "f8"), ("weight", "f8"), ("max_abs", "f8"), ("norm", "f8"),
     ("num_correct", "i8"), ("num_examples", "i8"), ("num_batches", "i8"), ("is_finite", "i4")],
    align=True,
)
assert STATS.itemsize == sizeof(fed_client_stats)


# ---- Work ----------------------------------------------------------------------------------------

cdef class Terms:
    """How a cohort is trained and its deltas are added.

    weighting; bounds (largest entry, L2 norm) or None; frozen (slots float32 [num_slots, P], step
    number) or None; rate_factors float64 by local step or None; class_weights float32 [K], the
    factors of the losses by class, or None.
    """
    cdef fed_terms table
    cdef fed_bounds bounds
    cdef const float[:, ::1] slots
    cdef const double[::1] rate_factors
    cdef const float[::1] class_weights

    def __cinit__(self, int weighting, bounds, frozen, rate_factors=None, class_weights=None):
        self.table.weighting = weighting
        if bounds is not None:
            self.bounds.max_abs, self.bounds.norm = bounds
            self.table.bounds = &self.bounds
        self.slots = None
        if frozen is not None:
            self.slots, self.table.frozen_step_num = frozen
        self.rate_factors = None
        if rate_factors is not None and len(rate_factors) > 0:
            self.rate_factors = rate_factors
            check_doubles(&self.rate_factors[0], "rate factors")
            self.table.rate_factors = &self.rate_factors[0]
            self.table.num_rate_factors = self.rate_factors.shape[0]
        self.class_weights = class_weights

    cdef fed_terms of_call(self, Step step, Model model) except *:
        """Returns the table with the step's tensors, the class weights and the frozen slots, after
        checking their shapes."""
        cdef fed_terms table = self.table
        table.tensors = &step.tensors
        if self.class_weights is not None:
            if <size_t> self.class_weights.shape[0] != model.table.num_classes:
                raise ValueError(f"{self.class_weights.shape[0]} class weights, but the model has"
                                 f" {model.table.num_classes} classes")
            check_floats(&self.class_weights[0], "class weights")
            table.class_weights = &self.class_weights[0]
        if self.slots is None or self.slots.shape[0] == step.num_slots == 0:
            return table
        if (<size_t> self.slots.shape[0], <size_t> self.slots.shape[1]) != (
                step.num_slots, model.table.num_params):
            raise ValueError(f"frozen slots are [{self.slots.shape[0]}, {self.slots.shape[1]}],"
                             f" not [{step.num_slots}, {model.table.num_params}]")
        check_floats(&self.slots[0, 0], "frozen slots")
        table.frozen_slots = &self.slots[0, 0]
        return table


cdef class Team(Exclusive):
    """The core's threads and their memory."""
    cdef fed_team *team

    def __cinit__(self, int num_threads):
        if not 1 <= num_threads <= FED_MAX_THREADS:
            raise ValueError(f"{num_threads} threads: a team has 1 to {FED_MAX_THREADS}")
        self.team = fed_team_new(num_threads)
        if self.team == NULL:
            raise MemoryError

    def __dealloc__(self):
        fed_team_free(self.team)

    def train_cohort(self, Model model not None, Step step not None,
                     const float[::1] server_params not None, Cohort cohort not None,
                     uint64_t round_num, Terms terms not None, CancelFlag cancel not None,
                     DeltaSum delta_sum not None, linear=None, deltas=None, factors=None,
                     starts=None):
        """Trains each client and adds its delta; returns the clients' STATS.

        linear float32 [num_clients or 1, P] is added to gradients by the LINEAR row. deltas float32
        [num_clients, P] receives the deltas. factors float64 [num_clients] multiply the deltas in
        the sum. starts float32 [num_clients, P] replace server_params; then no delta enters the
        sum.
        """
        cdef int status
        cdef fed_fault fault
        cdef fed_terms table
        cdef size_t c
        model.check_params(server_params)
        cohort.check_pixels(model.table.num_inputs)
        if delta_sum.model is not model:
            raise ValueError("delta_sum was made for another model")
        table = terms.of_call(step, model)
        table.num_trained = &cancel.trained
        if cohort.prepared_for is not None and cohort.prepared_for is not model:
            raise ValueError("the cohort was prepared for another model")
        stats = np.zeros(cohort.num_clients, STATS)
        cdef uint8_t[::1] view = stats.view(np.uint8)
        if cohort.num_clients == 0:
            return stats
        take_all(self, cohort, delta_sum)
        try:
            for c in range(cohort.num_clients):
                cohort.table[c].shuffle_key.round = round_num
                cohort.table[c].dropout_key.round = round_num
            cohort.set_own(model.table.num_params, linear, deltas, factors, starts)
            with nogil:
                status = fed_train_cohort(self.team, &model.table, &step.table, &server_params[0],
                                          cohort.table, cohort.num_clients, &table, &cancel.flag,
                                          delta_sum.sum, <fed_client_stats *> &view[0], &fault)
        finally:
            cohort.forget_own()
            give_all_back(self, cohort, delta_sum)
        check(status, &fault)
        return stats

    def evaluate(self, Model model not None, const float[::1] params not None,
                 Cohort cohort not None, CancelFlag cancel not None, starts=None):
        """Evaluates `params` on each client, or the client's row of starts float32
        [num_clients, P]; returns the clients' STATS."""
        cdef int status
        cdef fed_fault fault
        model.check_params(params)
        cohort.check_pixels(model.table.num_inputs)
        stats = np.zeros(cohort.num_clients, STATS)
        cdef uint8_t[::1] view = stats.view(np.uint8)
        if cohort.num_clients == 0:
            return stats
        take_all(self, cohort)
        try:
            cohort.set_own(model.table.num_params, None, None, None, starts)
            with nogil:
                status = fed_evaluate(self.team, &model.table, &params[0], cohort.table,
                                      cohort.num_clients, &cancel.flag,
                                      <fed_client_stats *> &view[0], &fault)
        finally:
            cohort.forget_own()
            give_all_back(self, cohort)
        check(status, &fault)
        return stats

    def predict(self, Model model not None, const float[::1] params not None,
                Cohort cohort not None, CancelFlag cancel not None, starts=None):
        """Returns the logits of every example of every client, in stored order: float32 [N, K].

        They are computed with `params`, or with the client's row of starts float32
        [num_clients, P].
        """
        cdef int status
        cdef fed_fault fault
        cdef size_t c, num_examples = 0
        model.check_params(params)
        cohort.check_pixels(model.table.num_inputs)
        for c in range(cohort.num_clients):
            num_examples += cohort.table[c].num_examples
        logits = np.empty((num_examples, model.table.num_classes), np.float32)
        cdef float[:, ::1] view = logits
        if num_examples == 0:
            return logits
        take_all(self, cohort)
        try:
            cohort.set_own(model.table.num_params, None, None, None, starts)
            with nogil:
                status = fed_predict(self.team, &model.table, &params[0], cohort.table,
                                     cohort.num_clients, &cancel.flag, &view[0, 0], &fault)
        finally:
            cohort.forget_own()
            give_all_back(self, cohort)
        check(status, &fault)
        return logits


cdef take_all(Exclusive first, Exclusive second, Exclusive third=None):
    """Takes all of them for a call, or none."""
    first.take()
    try:
        second.take()
        try:
            if third is not None:
                third.take()
        except BaseException:
            second.give_back()
            raise
    except BaseException:
        first.give_back()
        raise


cdef give_all_back(Exclusive first, Exclusive second, Exclusive third=None):
    first.give_back()
    second.give_back()
    if third is not None:
        third.give_back()


def next_client_vector(double scale, const float[::1] sent not None, float[::1] delta not None):
    """Replaces delta by scale * delta - sent; returns whether all values are finite."""
    cdef size_t num_params = delta.shape[0]
    if <size_t> sent.shape[0] != num_params:
        raise ValueError(f"{sent.shape[0]} values were sent, {num_params} came back")
    if num_params == 0:
        return True
    check_floats(&sent[0], "values sent")
    check_floats(&delta[0], "deltas")
    return fed_next_client_vector(num_params, scale, &sent[0], &delta[0]) != 0


def add_change(const float[::1] before not None, const float[::1] after not None,
               double[::1] change not None):
    """Adds after - before to change."""
    cdef size_t num_params = change.shape[0]
    if not (<size_t> before.shape[0] == <size_t> after.shape[0] == num_params):
        raise ValueError(f"vectors of {before.shape[0]}, {after.shape[0]} and {num_params} values")
    if num_params == 0:
        return
    check_floats(&before[0], "values before")
    check_floats(&after[0], "values after")
    check_doubles(&change[0], "changes")
    fed_add_change(num_params, &before[0], &after[0], &change[0])


cdef double *doubles_of(double[::1] values, size_t num_values, what) except? NULL:
    """Returns the address of values that must be [num_values]; NULL if they are None or empty."""
    if values is None:
        return NULL
    if <size_t> values.shape[0] != num_values:
        raise ValueError(f"{values.shape[0]} {what}, not {num_values}")
    if num_values == 0:
        return NULL
    check_doubles(&values[0], what)
    return &values[0]


cdef class Rows:
    """Some rows of a matrix of finite values, float32 [any, num_values], which is referenced.

    The rows are those of `chosen`, int64 [num_rows], at least one. Each method works on num_threads
    threads; its results do not depend on their number. Vectors are float64 [num_values].
    """
    cdef fed_rows table
    cdef const float **starts
    cdef object keep
    cdef int num_threads

    def __cinit__(self, const float[:, ::1] matrix not None, const int64_t[::1] chosen not None,
                  int num_threads):
        cdef size_t r
        self.table.num_rows, self.table.num_values = chosen.shape[0], matrix.shape[1]
        if chosen.shape[0] < 1:
            raise ValueError("no rows; give at least one")
        if not 1 <= num_threads <= FED_MAX_THREADS:
            raise ValueError(f"{num_threads} threads: give 1 to {FED_MAX_THREADS}")
        if <size_t> &chosen[0] % sizeof(int64_t) != 0:
            raise ValueError(f"row numbers are not aligned to {sizeof(int64_t)} bytes; give a copy")
        self.starts = <const float **> malloc(self.table.num_rows * sizeof(float *))
        if self.starts == NULL:
            raise MemoryError
        for r in range(self.table.num_rows):
            if not 0 <= chosen[r] < matrix.shape[0]:
                raise ValueError(f"row {chosen[r]} of {matrix.shape[0]}")
            self.starts[r] = &matrix[chosen[r], 0] if matrix.shape[1] > 0 else NULL
        if matrix.shape[1] > 0:
            check_floats(self.starts[0], "rows")
        self.table.rows = self.starts
        self.num_threads = num_threads
        self.keep = matrix

    def __dealloc__(self):
        free(self.starts)

    def trimmed_mean(self, size_t trim, double[::1] mean not None, double[::1] squares=None):
        """Writes the mean of each coordinate without the `trim` smallest and largest values.

        squares float64 [num_rows] receive the rows' squared distances to it.
        """
        cdef int status
        cdef double *to_mean = doubles_of(mean, self.table.num_values, "means")
        cdef double *to_squares = doubles_of(squares, self.table.num_rows, "squares")
        with nogil:
            status = fed_trimmed_mean(self.num_threads, &self.table, trim, to_mean, to_squares)
        check(status)

    def mean_near_median(self, size_t num_nearest, double[::1] mean not None):
        """Writes the mean of the values of each coordinate that are nearest to the median."""
        cdef int status
        cdef double *to_mean = doubles_of(mean, self.table.num_values, "means")
        with nogil:
            status = fed_mean_near_median(self.num_threads, &self.table, num_nearest, to_mean)
        check(status)

    def sign_votes(self, double[::1] origin=None):
        """Returns the sums of the signs of values minus origin: int32 [num_values]."""
        cdef int status
        votes = np.zeros(self.table.num_values, np.int32)
        cdef int32_t[::1] view = votes
        cdef double *of_origin = doubles_of(origin, self.table.num_values, "origins")
        if self.table.num_values == 0:
            return votes
        with nogil:
            status = fed_sign_votes(self.num_threads, &self.table, of_origin, &view[0])
        check(status)
        return votes

    def move(self, double kept, double[::1] factors not None, double[::1] vector not None,
             double[::1] squares=None):
        """Replaces vector by kept * vector + the sum of factors * rows; factors are at least 0."""
        cdef int status
        cdef double *of_factors = doubles_of(factors, self.table.num_rows, "factors")
        cdef double *of_vector = doubles_of(vector, self.table.num_values, "values of the vector")
        cdef double *to_squares = doubles_of(squares, self.table.num_rows, "squares")
        with nogil:
            status = fed_move_by_rows(self.num_threads, &self.table, kept, of_factors, of_vector,
                                      to_squares)
        check(status)

    def mix(self, double[:, ::1] factors not None, double[::1] offsets, double[::1] offset,
            float[:, ::1] out not None):
        """Writes out[o] = the sum over r of factors[o, r] * row r, plus offsets[o] * offset."""
        cdef int status
        cdef size_t num_out = out.shape[0]
        cdef double *of_offsets
        cdef double *of_offset
        if (<size_t> factors.shape[0], <size_t> factors.shape[1]) != (num_out, self.table.num_rows):
            raise ValueError(f"factors are [{factors.shape[0]}, {factors.shape[1]}], not"
                             f" [{num_out}, {self.table.num_rows}]")
        if <size_t> out.shape[1] != self.table.num_values:
            raise ValueError(f"rows of {out.shape[1]} values, not {self.table.num_values}")
        if (offsets is None) != (offset is None):
            raise ValueError("one of offsets and offset is None; give both or none")
        of_offsets = doubles_of(offsets, num_out, "offsets")
        of_offset = doubles_of(offset, self.table.num_values, "values of the offset")
        if num_out == 0 or self.table.num_values == 0:
            return
        check_doubles(&factors[0, 0], "factors")
        check_floats(&out[0, 0], "rows")
        with nogil:
            status = fed_mix_rows(self.num_threads, &self.table, &factors[0, 0], of_offsets,
                                  of_offset, num_out, &out[0, 0])
        check(status)

    def measure(self, double[::1] origin=None, double[::1] direction=None):
        """Returns the rows' squared distances to origin, and their products with direction (after
        origin is subtracted; 0 without a direction): float64 [num_rows] each."""
        cdef int status
        squares, products = np.zeros(self.table.num_rows), np.zeros(self.table.num_rows)
        cdef double[::1] squares_view = squares, products_view = products
        cdef double *of_origin = doubles_of(origin, self.table.num_values, "origins")
        cdef double *of_direction = doubles_of(direction, self.table.num_values, "directions")
        with nogil:
            status = fed_measure_rows(self.num_threads, &self.table, of_origin, of_direction,
                                      &squares_view[0], &products_view[0])
        check(status)
        return squares, products

    def pairs(self, bint is_product):
        """Returns all squared distances, or products, of two rows: float64 [num_rows, num_rows]."""
        cdef int status
        pairs = np.zeros((self.table.num_rows, self.table.num_rows))
        cdef double[:, ::1] view = pairs
        with nogil:
            status = fed_row_pairs(self.num_threads, &self.table, is_product, &view[0, 0])
        check(status)
        return pairs


def least_diameter(double[:, ::1] distances not None, size_t num_chosen):
    """Returns the rows whose largest distance is least, in ascending order: int64 [num_chosen]."""
    cdef int status
    cdef size_t c
    cdef size_t *chosen
    if distances.shape[0] != distances.shape[1] or distances.shape[0] < 1:
        raise ValueError(f"distances are [{distances.shape[0]}, {distances.shape[1]}], not square")
    if not 1 <= num_chosen <= <size_t> distances.shape[0]:
        raise ValueError(f"{num_chosen} of {distances.shape[0]} rows")
    check_doubles(&distances[0, 0], "distances")
    chosen = <size_t *> malloc(num_chosen * sizeof(size_t))
    if chosen == NULL:
        raise MemoryError
    with nogil:
        status = fed_least_diameter(&distances[0, 0], distances.shape[0], num_chosen, chosen)
    try:
        check(status)
        return np.array([chosen[c] for c in range(num_chosen)], np.int64)
    finally:
        free(chosen)


def stages(Model model not None):
    """Returns the first layer of each stage: a layer, or a convolution with the pool after it."""
    cdef size_t first_layers[FED_MAX_LAYERS]
    num_stages = fed_stages(&model.table, first_layers)
    return [first_layers[s] for s in range(num_stages)]


def exercise(Model model not None, const float[::1] params not None, size_t batch_size,
             size_t stage, int phase, size_t repeats):
    """Runs one phase of a stage (0 forward, 1 backward with a plain SGD update, 2 derive)
    repeatedly on a synthetic batch, on this thread."""
    cdef int status
    model.check_params(params)
    with nogil:
        status = fed_exercise(&model.table, &params[0], batch_size, stage, phase, repeats)
    check(status)


def example_order(Plan plan not None, size_t num_examples, key):
    """Returns the indices of the examples that a client visits, in order: uint32 [num_visits]."""
    cdef fed_order order
    cdef fed_key made = make_key(key)
    cdef size_t done = 0, num_visits = fed_plan_visits(&plan.plan, num_examples)
    check_num_examples(num_examples)
    if num_visits > INT64_MAX:
        raise ValueError(f"{num_visits} visits are too many to list")
    indices = np.empty(num_visits, np.uint32)
    buffer = np.empty(max(fed_order_capacity(&plan.plan, num_examples), 1), np.uint32)
    cdef uint32_t[::1] view = indices
    cdef uint32_t[::1] buffer_view = buffer
    fed_order_init(&order, &plan.plan, num_examples, &made, &buffer_view[0])
    while done < num_visits:
        done += fed_order_next(&order, &view[done])
    return indices


def random_u64(key, size_t count):
    """Returns the first `count` outputs of a stream: uint64 [count]."""
    cdef fed_key made = make_key(key)
    values = np.empty(count, np.uint64)
    cdef uint64_t[::1] view = values
    if count > 0:
        fed_rng_fill(&made, &view[0], count)
    return values


# ---- Compression ---------------------------------------------------------------------------------

SENT = np.dtype([("squared_norm", "f8"), ("squared_error", "f8"), ("num_bytes", "i8"),
                 ("is_sent", "i8")], align=True)
assert SENT.itemsize == sizeof(fed_sent)


cdef class Codec:
    """A codec for vectors made of tensors with the given shapes; options are fields of fed_codec.

    factors float32 [n] are the matrices of powersgd (U) or powersgd-left (V), one after the other.
    """
    cdef fed_codec table
    cdef fed_tensor *each
    cdef const float[::1] factors

    def __cinit__(self, kind, shapes, *, uint32_t bits=0, uint32_t levels=0, bint is_short=False,
                  bint is_unbiased=False, double step=0, double clip=0, size_t count=0,
                  size_t block=0, size_t rank=0, size_t depth=0, size_t width=0, factors=None):
        shapes = [tuple(shape) for shape in shapes]
        self.each = <fed_tensor *> calloc(max(len(shapes), 1), sizeof(fed_tensor))
        if self.each == NULL:
            raise MemoryError
        for t, shape in enumerate(shapes):
            self.each[t] = make_tensor(shape)
        self.table.tensors.each = self.each
        self.table.tensors.num = len(shapes)
        self.table.num_params = sum(math.prod(shape) for shape in shapes)
        self.table.kind = fed_codec_kind_named(kind.encode())
        self.table.bits, self.table.levels = bits, levels
        self.table.is_short, self.table.is_unbiased = is_short, is_unbiased
        self.table.step, self.table.clip = step, clip
        self.table.count, self.table.block, self.table.rank = count, block, rank
        self.table.depth, self.table.width = depth, width
        if factors is not None:
            self.set_factors(factors, kind, shapes)
        check(fed_codec_check(&self.table))

    def __dealloc__(self):
        free(self.each)

    cdef set_factors(self, factors, kind, shapes):
        """Keeps the matrices after checking their length."""
        num_values = 0
        for shape in shapes:
            if len(shape) > 1:
                *others, b = shape
                a = math.prod(others)
                num_values += (b if kind == "powersgd-left" else a) * min(self.table.rank, a, b)
        self.factors = factors
        if <size_t> self.factors.shape[0] != <size_t> num_values:
            raise ValueError(f"factors are [{self.factors.shape[0]}], not [{num_values}]")
        self.table.factors = <const float *> self.each  # any address will do for no values
        if num_values > 0:
            check_floats(&self.factors[0], "factors")
            self.table.factors = &self.factors[0]

    @property
    def capacity(self):
        """The largest number of bytes of a payload."""
        return fed_codec_capacity(&self.table)

    def encode(self, const float[::1] values not None, key):
        """Returns the payload of values float32 [P]."""
        cdef fed_key made = make_key(key)
        cdef size_t num_bytes = 0
        cdef int status
        if <size_t> values.shape[0] != self.table.num_params:
            raise ValueError(f"{values.shape[0]} values, not {self.table.num_params}")
        check_floats(&values[0], "values")
        payload = np.empty(max(self.capacity, 1), np.uint8)
        cdef uint8_t[::1] view = payload
        with nogil:
            status = fed_codec_encode(&self.table, &made, &values[0], &view[0], &num_bytes)
        check(status)
        return payload[:num_bytes].tobytes()

    def decode(self, const uint8_t[::1] payload not None, key):
        """Returns the values float32 [P] of a payload, or raises PayloadFault."""
        cdef fed_key made = make_key(key)
        cdef size_t num_bytes = payload.shape[0]
        cdef uint8_t nothing = 0
        cdef const uint8_t *first = &payload[0] if num_bytes > 0 else &nothing
        cdef int status
        values = np.empty(self.table.num_params, np.float32)
        cdef float[::1] view = values
        with nogil:
            status = fed_codec_decode(&self.table, &made, first, num_bytes, &view[0])
        check(status)
        return values

    def compress_rows(self, float[:, ::1] rows not None, const int64_t[::1] chosen not None, keys,
                      float[:, ::1] residuals, double decay, int num_threads):
        """Replaces the chosen rows of float32 [m, P] by what is decoded of them, and the residuals
        float32 [num_chosen, P], if any, by the rest; returns SENT [num_chosen]."""
        return _CodecCall(self, rows, chosen, keys, residuals).compress(decay, num_threads)

    def encode_rows(self, float[:, ::1] rows not None, const int64_t[::1] chosen not None, keys,
                    float[:, ::1] residuals, double decay, int num_threads):
        """Returns the payloads uint8 [num_chosen, capacity] of the chosen rows, and SENT."""
        return _CodecCall(self, rows, chosen, keys, residuals).encode(decay, num_threads)


cdef class _CodecCall:
    """One call for many rows: its checked arguments as the core takes them."""
    cdef Codec codec
    cdef size_t num_rows
    cdef float **rows
    cdef fed_key *keys
    cdef float *residuals
    cdef object keep

    def __cinit__(self, Codec codec not None, float[:, ::1] rows, const int64_t[::1] chosen, keys,
                  float[:, ::1] residuals):
        cdef size_t num_params = codec.table.num_params, r
        keys = list(keys)
        self.codec, self.num_rows = codec, chosen.shape[0]
        if <size_t> rows.shape[1] != num_params or len(keys) != self.num_rows:
            raise ValueError(f"rows are [{rows.shape[0]}, {rows.shape[1]}] and {len(keys)} keys for"
                             f" {num_params} parameters and {self.num_rows} rows")
        if residuals is not None and (<size_t> residuals.shape[0] != self.num_rows
                                      or <size_t> residuals.shape[1] != num_params):
            raise ValueError(f"residuals are [{residuals.shape[0]}, {residuals.shape[1]}], not"
                             f" [{self.num_rows}, {num_params}]")
        self.rows = <float **> calloc(max(self.num_rows, 1), sizeof(float *))
        self.keys = <fed_key *> calloc(max(self.num_rows, 1), sizeof(fed_key))
        if self.rows == NULL or self.keys == NULL:
            raise MemoryError
        last = -1  # ascending, so that no two threads write to one row
        for r in range(self.num_rows):
            if not last < chosen[r] < rows.shape[0]:
                raise ValueError(f"row {chosen[r]} of {rows.shape[0]} after row {last}")
            last = chosen[r]
            self.rows[r] = &rows[chosen[r], 0]
            self.keys[r] = make_key(keys[r])
        if self.num_rows > 0:
            check_floats(self.rows[0], "rows")
        if self.num_rows > 0 and residuals is not None:
            check_floats(&residuals[0, 0], "residuals")
            self.residuals = &residuals[0, 0]
        self.keep = (rows, residuals)

    def __dealloc__(self):
        free(self.rows)
        free(self.keys)

    cdef compress(self, double decay, int num_threads):
        cdef int status
        sent = np.zeros(self.num_rows, SENT)
        cdef uint8_t[::1] view = sent.view(np.uint8)
        if self.num_rows == 0:
            return sent
        with nogil:
            status = fed_codec_compress_rows(&self.codec.table, num_threads, self.keys, self.rows,
                                             self.num_rows, self.residuals, decay,
                                             <fed_sent *> &view[0])
        check(status)
        return sent

    cdef encode(self, double decay, int num_threads):
        cdef int status
        sent = np.zeros(self.num_rows, SENT)
        payloads = np.zeros((self.num_rows, max(self.codec.capacity, 1)), np.uint8)
        cdef uint8_t[::1] view = sent.view(np.uint8)
        cdef uint8_t[:, ::1] bytes_of = payloads
        if self.num_rows == 0:
            return payloads, sent
        with nogil:
            status = fed_codec_encode_rows(&self.codec.table, num_threads, self.keys, self.rows,
                                           self.num_rows, self.residuals, decay, &bytes_of[0, 0],
                                           <fed_sent *> &view[0])
        check(status)
        return payloads[:, :self.codec.capacity], sent


def secure_sum(const float[:, ::1] rows not None, weights, coins, masks, *, uint64_t weight_unit,
               double bound, uint32_t bits, uint32_t mask_bits, int num_threads,
               bint returns_sent=False):
    """Sums rows float32 [n, P] as fed_secure_sum does, of m >= n clients.

    `weights` has a whole number for each client, 0 for those without a row; `coins` a key for each,
    or is None. Returns the sums uint64 [P + 1], the number of coordinates that were clipped, and
    the masked rows uint64 [m, P + 1] or None.
    """
    weights = list(weights)
    keys = None if coins is None else list(coins)
    cdef size_t num_clients = len(weights), num_rows = rows.shape[0], i
    cdef fed_secure_terms terms
    cdef uint64_t num_clipped = 0
    cdef uint64_t[::1] total_view
    cdef uint64_t[:, ::1] sent_view
    cdef uint64_t *sent_start = NULL
    cdef int status
    if num_rows > num_clients or (keys is not None and <size_t> len(keys) != num_clients):
        raise ValueError(f"{num_rows} rows and other numbers of keys for {num_clients} clients")
    if any(weights[num_rows:]):
        raise ValueError("a client without a row has a weight above 0")
    if num_rows > 0 and rows.shape[1] > 0:
        check_floats(&rows[0, 0], "rows")
    cdef const float **starts = <const float **> calloc(num_clients + 1, sizeof(float *))
    cdef uint64_t *counts = <uint64_t *> calloc(num_clients + 1, sizeof(uint64_t))
    cdef fed_key *coin_keys = <fed_key *> calloc(num_clients + 1, sizeof(fed_key))
    try:
        if starts == NULL or counts == NULL or coin_keys == NULL:
            raise MemoryError
        for i in range(num_clients):
            counts[i] = weights[i]
            if keys is not None:
                coin_keys[i] = make_key(keys[i])
            if i < num_rows and rows.shape[1] > 0:
                starts[i] = &rows[i, 0]
        terms.num_clients, terms.num_params = num_clients, rows.shape[1]
        terms.rows, terms.weights, terms.weight_unit = starts, counts, weight_unit
        terms.bound, terms.bits, terms.mask_bits = bound, bits, mask_bits
        terms.coins = NULL if keys is None else coin_keys
        terms.masks = make_key(masks)
        total = np.zeros(rows.shape[1] + 1, np.uint64)
        total_view = total
        sent = None
        if returns_sent and num_clients > 0:
            sent = np.zeros((num_clients, rows.shape[1] + 1), np.uint64)
            sent_view = sent
            sent_start = &sent_view[0, 0]
        with nogil:
            status = fed_secure_sum(num_threads, &terms, &total_view[0], sent_start, &num_clipped)
        check(status)
        return total, num_clipped, sent
    finally:
        free(starts)
        free(counts)
        free(coin_keys)


def add_normal(key, double scale, double[::1] values not None):
    """Adds scale times standard normal numbers of a stream to values, float64 [n], in place."""
    cdef fed_key made = make_key(key)
    if values.shape[0] > 0:
        with nogil:
            fed_rng_add_normal(&made, scale, &values[0], values.shape[0])


cdef fed_synthetic make_synthetic(options):
    seed, style_spread, label_noise, sizes = options  # unpacking checks the length
    return fed_synthetic(seed, style_spread, label_noise, sizes)


def synthetic_count(options, uint64_t client_key, int split):
    """Returns the number of examples of a client of synthetic-digits; options are (seed, spread,
    label noise, sizes)."""
    cdef fed_synthetic made = make_synthetic(options)
    return fed_synthetic_count(&made, client_key, split)


def synthetic_draw(options, uint64_t client_key, int split, size_t first, size_t num):
    """Draws examples of a client: pixels uint8 [num, 28, 28] with 255 = ink, labels int32 [num]."""
    cdef int status
    cdef fed_synthetic made = make_synthetic(options)
    pixels, labels = np.empty((num, 28, 28), np.uint8), np.empty(num, np.int32)
    cdef uint8_t[:, :, ::1] pixels_view = pixels
    cdef int32_t[::1] labels_view = labels
    if num == 0:
        return pixels, labels
    with nogil:
        status = fed_synthetic_draw(&made, client_key, split, first, num, &pixels_view[0, 0, 0],
                                    &labels_view[0])
    check(status)
    return pixels, labels
