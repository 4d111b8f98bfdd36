# SPDX-License-Identifier: Apache-2.0
"""The boundary to the C core: checks arguments, calls without the GIL, maps statuses to errors."""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
)
from libc.stddef cimport size_t
from libc.stdint cimport (
    INT64_MAX, SIZE_MAX, UINT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
)
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from fedcli.core._fed cimport *

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(object)

import math
import os
import sys

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


cdef int check(int status, const fed_fault *fault=NULL) except -1:
    """Raises the exception for a status; returns for FED_OK."""
    if status == FED_OK:
        return 0
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

ISAS = tuple([name for name in ("generic", "avx2", "avx512") if fed_isa_runs(name.encode())])
choose_isa()
ISA = fed_isa_name().decode()
HAS_OPENMP = bool(fed_has_openmp())
MAX_LAYERS = FED_MAX_LAYERS
MAX_BATCH = FED_MAX_BATCH


def fma_chain(size_t num_steps):
    """Runs fused multiply-adds on one thread; returns the floating-point operations done."""
    cdef double operations
    with nogil:
        operations = fed_fma_chain(num_steps)
    return operations


# ---- Values that cross the boundary --------------------------------------------------------------

# Cython's typed memoryviews are not used: they do not check alignment, and their code takes as long
# to compile as the rest of this file.

cdef class Array:
    """The memory of a vector or a matrix in C order, held in place until this object is freed."""
    cdef Py_buffer buffer
    cdef void *start  # some address if there are no elements
    cdef size_t length, width  # of the first and of the second axis; the width of a vector is 1
    cdef object what  # the values' name in messages

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)

    cdef int check_shape(self, size_t length, size_t width=1) except -1:
        if self.length == length and self.width == width:
            return 0
        if self.buffer.ndim == 1:
            raise ValueError(f"{self.what} are [{self.length}], not [{length}]")
        raise ValueError(f"{self.what} are [{self.length}, {self.width}], not [{length}, {width}]")


cdef char OWN_ORDER = ord("<" if sys.byteorder == "little" else ">")


cdef Array hold(values, char kind, int num_axes, what, bint is_written=False):
    """Returns the memory of values in C order: float32 (f), float64 (d), uint8 (B), int32 (i) or
    int64 (q). The core's vector loads rely on the alignment of the type."""
    cdef Array held = Array.__new__(Array)
    cdef Py_buffer *buffer = &held.buffer
    cdef Py_ssize_t size = 1 if kind == c"B" else 4 if kind == c"f" or kind == c"i" else 8
    cdef const char *format
    cdef char found
    held.what = what
    PyObject_GetBuffer(values, buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT
                       | (PyBUF_WRITABLE if is_written else 0))
    format = buffer.format
    if format != NULL and format[0] == OWN_ORDER:  # the dtype names the native byte order
        format += 1
    found = format[0] if format != NULL and format[0] != 0 and format[1] == 0 else 0
    if found == c"l":  # C long, which NumPy uses for int32 or int64
        found = c"i" if buffer.itemsize == 4 else c"q"
    if found != kind or buffer.itemsize != size:
        raise ValueError(f"{what} are not {np.dtype(chr(kind))}")
    if buffer.ndim != num_axes:
        raise ValueError(f"{what} have {buffer.ndim} axes, not {num_axes}")
    if buffer.len > 0 and <size_t> buffer.buf % size != 0:
        raise ValueError(f"{what} are not aligned to {size} bytes; give a copy")
    held.start, held.length = buffer.buf, buffer.shape[0]
    held.width = buffer.shape[1] if num_axes > 1 else 1
    return held


cdef Array hold_vector(values, char kind, size_t length, what, bint is_written=False):
    """Returns the memory of values that must be [length]; None if they are None."""
    if values is None:
        return None
    held = hold(values, kind, 1, what, is_written)
    held.check_shape(length)
    return held


cdef Array hold_matrix(values, size_t length, size_t width, what, bint is_written=False):
    """Returns the memory of values that must be float32 [length, width]; None if they are None."""
    if values is None:
        return None
    held = hold(values, c"f", 2, what, is_written)
    held.check_shape(length, width)
    return held


cdef float *floats(Array values, size_t row=0) noexcept nogil:
    """Returns the address of a row; NULL if there are no values."""
    return NULL if values is None else <float *> values.start + row * values.width


cdef double *doubles(Array values) noexcept nogil:
    return NULL if values is None else <double *> values.start


cdef void *memory_of(made) except NULL:
    """Returns the address of the elements of an array that was made here and stays referenced."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(made, &buffer, PyBUF_WRITABLE)
    PyBuffer_Release(&buffer)
    return buffer.buf


cdef class Exclusive:
    """An object that one call at a time may use; calls release the GIL while the core runs."""
    cdef bint is_in_use

    cdef int take(self) except -1:
        if self.is_in_use:
            raise RuntimeError(f"this {type(self).__name__} is in use by another call")
        self.is_in_use = True

    cdef void give_back(self) noexcept:
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
    (kind, made.activation, shape_in, shape_out, made.offset, made.skips[0], made.skips[1],
     made.has_scale, made.has_bias, made.window_height, made.window_width, made.stride_y,
     made.stride_x, made.pad_top, made.pad_left, made.num_groups, made.epsilon, made.rate,
     made.momentum, made.is_frozen, made.moving_offset, *constants) = row
    for i, constant in enumerate(constants[:2 * FED_MAX_NORMALIZED]):
        made.constants[i] = constant
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

    cdef Array hold_params(self, params):
        held = hold(params, c"f", 1, "parameters")
        if held.length != self.table.num_params:
            raise ValueError(f"{held.length} parameters given, but the model has"
                             f" {self.table.num_params}")
        return held


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
        if slots.size > 0:
            fed_step_init_slots(&self.table, num_params, <float *> memory_of(slots))
        return slots

    def apply(self, size_t step_num, params, server_params, gradient, slots, linear=None):
        """Takes local step number step_num in place and overwrites gradient."""
        cdef Array to_params = hold(params, c"f", 1, "params", True)
        cdef Array of_server = hold(server_params, c"f", 1, "server_params")
        cdef Array to_gradient = hold(gradient, c"f", 1, "gradients", True)
        cdef Array to_slots = hold(slots, c"f", 2, "slots", True)
        cdef Array of_linear = hold(linear, c"f", 1, "linear terms") if linear is not None else None
        of_server.check_shape(to_params.length)
        to_gradient.check_shape(to_params.length)
        to_slots.check_shape(fed_step_slots(&self.table), to_params.length)
        if of_linear is not None:
            of_linear.check_shape(to_params.length)
        if to_params.length == 0:
            return
        check(fed_step_apply(&self.table, &self.tensors, step_num, to_params.length,
                             floats(to_params), floats(of_server),
                             floats(of_linear) if of_linear is not None else NULL,
                             floats(to_gradient),
                             floats(to_slots) if to_slots.length > 0 else NULL))


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
    call. Training writes the number of the round into the three keys."""
    cdef fed_client table
    cdef size_t num_values  # pixels of all examples together
    cdef Array pixels
    cdef Array labels

    def __cinit__(self, pixels, labels, float scale, float offset, Plan plan not None, shuffle_key,
                  dropout_key, mixup_key):
        self.labels = hold(labels, c"i", 1, "labels")
        check_num_examples(self.labels.length)
        self.table.num_examples = self.labels.length
        flat = np.asarray(pixels).reshape(-1)
        if flat.size > 0 and <size_t> len(pixels) != self.labels.length:
            raise ValueError(f"{len(pixels)} images but {self.labels.length} labels")
        is_bytes = flat.dtype == np.uint8
        self.pixels = hold(flat, c"B" if is_bytes else c"f", 1, "pixels")
        self.table.pixel_type = FED_PIXELS_UINT8 if is_bytes else FED_PIXELS_FLOAT32
        self.table.pixels = self.pixels.start if self.pixels.length > 0 else NULL
        self.table.labels = <int32_t *> self.labels.start if self.labels.length > 0 else NULL
        self.table.scale, self.table.offset = scale, offset
        self.table.plan = plan.plan
        self.table.shuffle_key = make_key(shuffle_key)
        self.table.dropout_key = make_key(dropout_key)
        self.table.mixup_key = make_key(mixup_key)
        self.num_values = self.pixels.length


cdef class Cohort(Exclusive):
    """An array of clients in the form that the core reads."""
    cdef fed_client *table
    cdef fed_own *own
    cdef size_t num_clients
    cdef object clients
    cdef object held  # the arrays to which `own` points during a call
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

    cdef int set_own(self, size_t num_params, linear, deltas, factors, starts,
                     max_distances=None) except -1:
        """Points each client to its rows; a single row of `linear` is for all clients."""
        cdef size_t c
        cdef bint has_each_linear = False
        cdef Array of_linear = None if linear is None else hold(linear, c"f", 2, "linear terms")
        cdef Array to_deltas = hold_matrix(deltas, self.num_clients, num_params, "deltas", True)
        cdef Array of_starts = hold_matrix(starts, self.num_clients, num_params, "starts")
        cdef Array of_factors = hold_vector(factors, c"d", self.num_clients, "factors")
        cdef Array of_distances = hold_vector(max_distances, c"d", self.num_clients,
                                              "largest distances")
        if linear is not None:
            of_linear.check_shape(1 if of_linear.length == 1 else self.num_clients, num_params)
            has_each_linear = of_linear.length > 1
        self.held = (of_linear, to_deltas, of_starts)
        for c in range(self.num_clients):
            self.own[c].linear = floats(of_linear, c if has_each_linear else 0)
            self.own[c].delta = floats(to_deltas, c)
            self.own[c].start = floats(of_starts, c)
            self.own[c].max_distance = 0.0 if max_distances is None else doubles(of_distances)[c]
            if factors is not None:
                self.own[c].delta_factor = doubles(of_factors)[c]
            else:
                self.own[c].delta_factor = 1.0 if starts is None else 0.0
        return 0

    cdef void forget_own(self) noexcept:
        """Clears the pointers to rows, which may be freed after the call."""
        memset(self.own, 0, self.num_clients * sizeof(fed_own))
        self.held = None

    def prepare(self, Model model not None):
        """Decodes pixels once for all rounds of training with `model`: four bytes per pixel."""
        self.take()
        try:
            self.prepare_each(model)
        finally:
            self.give_back()

    cdef int prepare_each(self, Model model) except -1:
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

    cdef int check_pixels(self, size_t num_inputs) except -1:
        cdef Client client
        for c, client in enumerate(self.clients):
            if client.num_values != client.table.num_examples * num_inputs:
                raise ValueError(f"client {c} has {client.num_values} pixel values in"
                                 f" {client.table.num_examples} examples, but the model takes"
                                 f" {num_inputs} per example")


@cython.internal  # only subclasses make the sum
cdef class Sum(Exclusive):
    """An ordered, weighted, float64 sum of vectors, float32 [num_values]."""
    cdef fed_sum *sum
    cdef size_t num_values
    cdef object last_total

    def __dealloc__(self):
        fed_sum_free(self.sum)

    def reset(self):
        """Sets the sum to zero and keeps its memory."""
        self.take()
        fed_sum_reset(self.sum)
        self.give_back()

    def total(self):
        """The sum of weight * vector, float64 [num_values], and the sum of the weights.

        The array of the last call is used again if nothing else refers to it: clearing the pages of
        a new array, which the system does, can take as long as training on some images.
        """
        cdef double weight
        cdef object total = self.last_total
        self.last_total = None
        if total is None or Py_REFCNT(total) > 1:
            total = np.empty(self.num_values, np.float64)
        self.take()
        fed_sum_total(self.sum, <double *> memory_of(total), &weight)
        self.give_back()
        self.last_total = total
        return total, weight


cdef class DeltaSum(Sum):
    """The sum of a cohort's model deltas."""
    cdef Model model

    def __cinit__(self, Model model not None):
        self.model, self.num_values = model, model.table.num_params
        self.sum = fed_sum_new_of(&model.table)
        if self.sum == NULL:
            raise MemoryError


cdef class _Vectors:
    """Vectors float32 [num_values], with weights float64, as the core takes them."""
    cdef list held
    cdef Array weights
    cdef const float **starts
    cdef size_t num_vectors

    def __cinit__(self, vectors, weights, size_t num_values):
        cdef Array vector
        cdef size_t i
        self.weights = hold(weights, c"d", 1, "weights")
        self.held = [hold(each, c"f", 1, f"values of vector {v}") for v, each in enumerate(vectors)]
        self.num_vectors = len(self.held)
        if self.weights.length != self.num_vectors:
            raise ValueError(f"{self.weights.length} weights for {self.num_vectors} vectors")
        self.starts = <const float **> malloc(max(self.num_vectors, 1) * sizeof(float *))
        if self.starts == NULL:
            raise MemoryError
        for i, vector in enumerate(self.held):
            if vector.length != num_values:
                raise ValueError(f"vector {i} is [{vector.length}], not [{num_values}]")
            self.starts[i] = floats(vector)

    def __dealloc__(self):
        free(self.starts)


cdef class VectorSum(Sum):
    """The sum of vectors that are added in turn."""

    def __cinit__(self, size_t num_values):
        self.num_values = num_values
        self.sum = fed_sum_new(num_values)
        if self.sum == NULL:
            raise MemoryError

    def add(self, vectors, weights):
        """Adds weights[i] * vectors[i], float32 [num_values], in turn; weights are float64."""
        cdef _Vectors given = _Vectors(vectors, weights, self.num_values)
        cdef int status
        if given.num_vectors == 0 or self.num_values == 0:
            return
        self.take()
        with nogil:
            status = fed_sum_add(self.sum, given.starts, doubles(given.weights), given.num_vectors)
        self.give_back()
        check(status)


STATS = np.dtype(
    [("loss_sum", "f8"), ("weight", "f8"), ("max_abs", "f8"), ("norm", "f8"),
     ("num_correct", "i8"), ("num_examples", "i8"), ("num_batches", "i8"), ("is_finite", "i4")],
    align=True,
)
assert STATS.itemsize == sizeof(fed_client_stats)


SIZES = np.dtype([("max_abs", "f8"), ("norm", "f8"), ("is_finite", "i8")], align=True)
assert SIZES.itemsize == sizeof(fed_measured)


cdef class _Matrix:
    """The rows of float32 [m, P] as the core takes them."""
    cdef Array matrix
    cdef float **starts
    cdef size_t num_rows, num_values

    def __cinit__(self, rows, bint is_written):
        cdef size_t r
        self.matrix = hold(rows, c"f", 2, "rows", is_written)
        self.num_rows, self.num_values = self.matrix.length, self.matrix.width
        self.starts = <float **> malloc(max(self.num_rows, 1) * sizeof(float *))
        if self.starts == NULL:
            raise MemoryError
        for r in range(self.num_rows):
            self.starts[r] = floats(self.matrix, r)

    def __dealloc__(self):
        free(self.starts)


def bound_rows(rows, bounds, int num_threads):
    """Brings the finite rows of float32 [m, P] within bounds, in place.

    bounds is (largest entry, L2 norm), or None for no bounds. Returns SIZES [m]; without bounds
    only is_finite is set.
    """
    cdef _Matrix held = _Matrix(rows, True)
    cdef fed_bounds table
    cdef const fed_bounds *given = NULL
    cdef int status
    if bounds is not None:
        table.max_abs, table.norm = bounds
        given = &table
    sizes = np.zeros(held.num_rows, SIZES)
    if held.num_rows == 0:
        return sizes
    cdef fed_measured *to_sizes = <fed_measured *> memory_of(sizes)
    with nogil:
        status = fed_bound_rows(num_threads, held.starts, held.num_rows, held.num_values, given,
                                to_sizes)
    check(status)
    return sizes


def sum_vectors(vectors, weights not None, size_t num_values, int num_threads):
    """Returns the sum of weights[i] * vectors[i], float64 [num_values], as VectorSum computes it.

    vectors are float32 [num_values] each, weights float64.
    """
    cdef _Vectors given = _Vectors(vectors, weights, num_values)
    cdef int status
    total = np.empty(num_values)
    if num_values == 0:
        return total
    cdef double *to_total = <double *> memory_of(total)
    with nogil:
        status = fed_sum_vectors(num_threads, given.starts, doubles(given.weights),
                                 given.num_vectors, num_values, to_total)
    check(status)
    return total


def sum_rows(rows, weights not None, int num_threads):
    """Returns the sum of weights[r] * rows[r], float64 [P], as VectorSum computes it.

    rows are float32 [m, P], weights float64 [m].
    """
    cdef _Matrix held = _Matrix(rows, False)
    cdef Array of_weights = hold_vector(weights, c"d", held.num_rows, "weights")
    cdef int status
    total = np.empty(held.num_values)
    if held.num_values == 0:
        return total
    cdef double *to_total = <double *> memory_of(total)
    with nogil:
        status = fed_sum_vectors(num_threads, <const float *const *> held.starts,
                                 doubles(of_weights), held.num_rows, held.num_values, to_total)
    check(status)
    return total


# ---- Work ----------------------------------------------------------------------------------------

cdef class Terms:
    """How a cohort is trained and its deltas are added.

    weighting is one of enum fed_weighting. bounds are (largest entry, L2 norm), or None. frozen is
    (slots float32 [num_slots, P], step number), or None. rate_factors float64 multiply the learning
    rate of each local step; None: 1. class_weights float32 [K] multiply the losses by class; None:
    1. label_smoothing is in [0, 1).
    """
    cdef fed_terms table
    cdef fed_bounds bounds
    cdef Array slots
    cdef Array rate_factors
    cdef Array class_weights

    def __cinit__(self, int weighting, bounds, frozen, rate_factors=None, class_weights=None,
                  float label_smoothing=0):
        self.table.weighting = weighting
        self.table.label_smoothing = label_smoothing
        if bounds is not None:
            self.bounds.max_abs, self.bounds.norm = bounds
            self.table.bounds = &self.bounds
        if frozen is not None:
            slots, self.table.frozen_step_num = frozen
            self.slots = hold(slots, c"f", 2, "frozen slots")
        if rate_factors is not None and len(rate_factors) > 0:
            self.rate_factors = hold(rate_factors, c"d", 1, "rate factors")
            self.table.rate_factors = doubles(self.rate_factors)
            self.table.num_rate_factors = self.rate_factors.length
        if class_weights is not None:
            self.class_weights = hold(class_weights, c"f", 1, "class weights")

    cdef fed_terms of_call(self, Step step, Model model) except *:
        """Returns the table with the step's tensors, the class weights and the frozen slots, after
        checking their shapes."""
        cdef fed_terms table = self.table
        cdef size_t num_slots = fed_step_slots(&step.table)
        table.tensors = &step.tensors
        if self.class_weights is not None:
            if self.class_weights.length != model.table.num_classes:
                raise ValueError(f"{self.class_weights.length} class weights, but the model has"
                                 f" {model.table.num_classes} classes")
            table.class_weights = floats(self.class_weights)
        if self.slots is None or self.slots.length == num_slots == 0:
            return table
        self.slots.check_shape(num_slots, model.table.num_params)
        table.frozen_slots = floats(self.slots)
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
                     server_params, Cohort cohort not None, uint64_t round_num,
                     Terms terms not None, CancelFlag cancel not None,
                     DeltaSum delta_sum, linear=None, deltas=None, factors=None, starts=None,
                     max_distances=None):
        """Trains each client and adds its delta, if there is a sum; returns the clients' STATS.

        linear float32 [num_clients or 1, P] is added to gradients by the LINEAR row. deltas float32
        [num_clients, P] receives the deltas. factors float64 [num_clients] multiply the deltas in
        the sum. starts float32 [num_clients, P] replace server_params; then no delta enters the
        sum unless there are factors (see fed_own). max_distances float64 [num_clients] bound,
        after each epoch, the L2 distance from the parameters with which a client starts; 0 for no
        bound.
        """
        cdef int status
        cdef fed_fault fault
        cdef fed_terms table
        cdef size_t c
        cdef fed_client_stats *to_stats
        cdef Array params = model.hold_params(server_params)
        cohort.check_pixels(model.table.num_inputs)
        if delta_sum is not None and delta_sum.model is not model:
            raise ValueError("delta_sum was made for another model")
        table = terms.of_call(step, model)
        table.num_trained = &cancel.trained
        if cohort.prepared_for is not None and cohort.prepared_for is not model:
            raise ValueError("the cohort was prepared for another model")
        stats = np.zeros(cohort.num_clients, STATS)
        to_stats = <fed_client_stats *> memory_of(stats)
        if cohort.num_clients == 0:
            return stats
        take_all(self, cohort, delta_sum)
        try:
            for c in range(cohort.num_clients):
                cohort.table[c].shuffle_key.round = round_num
                cohort.table[c].dropout_key.round = round_num
                cohort.table[c].mixup_key.round = round_num
            cohort.set_own(model.table.num_params, linear, deltas, factors, starts, max_distances)
            with nogil:
                status = fed_train_cohort(self.team, &model.table, &step.table,
                                          <float *> params.start,
                                          cohort.table, cohort.num_clients, &table, &cancel.flag,
                                          NULL if delta_sum is None else delta_sum.sum, to_stats,
                                          &fault)
        finally:
            cohort.forget_own()
            give_all_back(self, cohort, delta_sum)
        check(status, &fault)
        return stats

    def evaluate(self, Model model not None, params, Cohort cohort not None,
                 CancelFlag cancel not None, starts=None):
        """Evaluates each client with `params`, or with its row of `starts` float32
        [num_clients, P]; returns the clients' STATS."""
        cdef int status
        cdef fed_fault fault
        cdef fed_client_stats *to_stats
        cdef Array of_params = model.hold_params(params)
        cohort.check_pixels(model.table.num_inputs)
        stats = np.zeros(cohort.num_clients, STATS)
        to_stats = <fed_client_stats *> memory_of(stats)
        if cohort.num_clients == 0:
            return stats
        take_all(self, cohort)
        try:
            cohort.set_own(model.table.num_params, None, None, None, starts)
            with nogil:
                status = fed_evaluate(self.team, &model.table, <float *> of_params.start,
                                      cohort.table, cohort.num_clients, &cancel.flag, to_stats,
                                      &fault)
        finally:
            cohort.forget_own()
            give_all_back(self, cohort)
        check(status, &fault)
        return stats

    def predict(self, Model model not None, params, Cohort cohort not None,
                CancelFlag cancel not None, starts=None):
        """Returns the logits of every example of every client, in stored order: float32 [N, K].

        They are computed with `params`, or with the client's row of starts float32
        [num_clients, P].
        """
        cdef int status
        cdef fed_fault fault
        cdef size_t c, num_examples = 0
        cdef float *to_logits
        cdef Array of_params = model.hold_params(params)
        cohort.check_pixels(model.table.num_inputs)
        for c in range(cohort.num_clients):
            num_examples += cohort.table[c].num_examples
        logits = np.empty((num_examples, model.table.num_classes), np.float32)
        to_logits = <float *> memory_of(logits)
        if num_examples == 0:
            return logits
        take_all(self, cohort)
        try:
            cohort.set_own(model.table.num_params, None, None, None, starts)
            with nogil:
                status = fed_predict(self.team, &model.table, <float *> of_params.start,
                                     cohort.table, cohort.num_clients, &cancel.flag, to_logits,
                                     &fault)
        finally:
            cohort.forget_own()
            give_all_back(self, cohort)
        check(status, &fault)
        return logits


cdef int take_all(Exclusive first, Exclusive second, Exclusive third=None) except -1:
    """Reserves all objects for a call, or none."""
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


cdef void give_all_back(Exclusive first, Exclusive second, Exclusive third=None) noexcept:
    first.give_back()
    second.give_back()
    if third is not None:
        third.give_back()


def next_client_vector(double scale, sent, delta):
    """Replaces delta by scale * delta - sent, float32 [P]; returns whether all are finite."""
    cdef Array to_delta = hold(delta, c"f", 1, "deltas", True)
    cdef Array of_sent = hold(sent, c"f", 1, "values sent")
    of_sent.check_shape(to_delta.length)
    return fed_next_client_vector(to_delta.length, scale, floats(of_sent), floats(to_delta)) != 0


def add_change(before, after, change):
    """Adds after - before, float32 [P], to change, float64 [P]."""
    cdef Array to_change = hold(change, c"d", 1, "changes", True)
    cdef Array of_before = hold(before, c"f", 1, "values before")
    cdef Array of_after = hold(after, c"f", 1, "values after")
    of_before.check_shape(to_change.length)
    of_after.check_shape(to_change.length)
    fed_add_change(to_change.length, floats(of_before), floats(of_after), doubles(to_change))


def divide(total, double divisor):
    """Returns total / divisor, rounded to float32 once: total is float64 [n]."""
    cdef Array held = hold(total, c"d", 1, "total")
    quotient = np.empty(held.length, np.float32)
    if held.length > 0:
        fed_divide(held.length, doubles(held), divisor, <float *> memory_of(quotient))
    return quotient


cdef class Rows:
    """Some rows of a matrix of finite values, float32 [any, num_values], which is referenced.

    The rows are those of `chosen`, int64 [num_rows], at least one. Each method works on num_threads
    threads; its results do not depend on their number. Vectors are float64 [num_values].
    """
    cdef fed_rows table
    cdef const float **starts
    cdef Array matrix
    cdef int num_threads

    def __cinit__(self, matrix, chosen, int num_threads):
        cdef Array of_chosen = hold(chosen, c"q", 1, "row numbers")
        cdef size_t r
        cdef int64_t row
        self.matrix = hold(matrix, c"f", 2, "rows")
        self.table.num_rows, self.table.num_values = of_chosen.length, self.matrix.width
        if of_chosen.length < 1:
            raise ValueError("no rows; give at least one")
        if not 1 <= num_threads <= FED_MAX_THREADS:
            raise ValueError(f"{num_threads} threads: give 1 to {FED_MAX_THREADS}")
        self.starts = <const float **> malloc(self.table.num_rows * sizeof(float *))
        if self.starts == NULL:
            raise MemoryError
        for r in range(self.table.num_rows):
            row = (<int64_t *> of_chosen.start)[r]
            if not 0 <= row < <int64_t> self.matrix.length:
                raise ValueError(f"row {row} of {self.matrix.length}")
            self.starts[r] = floats(self.matrix, row)
        self.table.rows = self.starts
        self.num_threads = num_threads

    def __dealloc__(self):
        free(self.starts)

    cdef Array hold_values(self, values, what, bint is_written=False):
        """Returns the memory of float64 [num_values]; None if they are None."""
        return hold_vector(values, c"d", self.table.num_values, what, is_written)

    cdef Array hold_of_rows(self, values, what, bint is_written=False):
        """Returns the memory of float64 [num_rows]; None if they are None."""
        return hold_vector(values, c"d", self.table.num_rows, what, is_written)

    def trimmed_mean(self, size_t trim, mean=None, rounded=None, squares=None):
        """Writes the mean of each coordinate without the `trim` smallest and largest values.

        It is written to mean, float64, or to rounded, float32 [num_values]; one may be None.
        squares float64 [num_rows] receive the rows' squared distances to it.
        """
        cdef int status
        cdef Array to_mean = self.hold_values(mean, "means", True)
        cdef Array to_rounded = hold_vector(rounded, c"f", self.table.num_values, "means", True)
        cdef Array to_squares = self.hold_of_rows(squares, "squares", True)
        cdef fed_mean out
        out.exact, out.rounded = doubles(to_mean), floats(to_rounded)
        with nogil:
            status = fed_trimmed_mean(self.num_threads, &self.table, trim, out,
                                      doubles(to_squares))
        check(status)

    def mean_near_median(self, size_t num_nearest, mean=None, rounded=None):
        """Writes the mean of the values of each coordinate that are nearest to the median.

        It is written to mean or rounded, as by trimmed_mean.
        """
        cdef int status
        cdef Array to_mean = self.hold_values(mean, "means", True)
        cdef Array to_rounded = hold_vector(rounded, c"f", self.table.num_values, "means", True)
        cdef fed_mean out
        out.exact, out.rounded = doubles(to_mean), floats(to_rounded)
        with nogil:
            status = fed_mean_near_median(self.num_threads, &self.table, num_nearest, out)
        check(status)

    def sign_votes(self, origin=None):
        """Returns the sums of the signs of values minus origin: int32 [num_values]."""
        cdef int status
        votes = np.zeros(self.table.num_values, np.int32)
        cdef int32_t *to_votes = <int32_t *> memory_of(votes)
        cdef Array of_origin = self.hold_values(origin, "origins")
        with nogil:
            status = fed_sign_votes(self.num_threads, &self.table, doubles(of_origin), to_votes)
        check(status)
        return votes

    def move(self, double kept, factors not None, vector not None, squares=None):
        """Replaces vector by kept * vector + the sum of factors[r] * row r.

        factors float64 [num_rows] are at least 0. squares float64 [num_rows] receive the rows'
        squared distances to the result.
        """
        cdef int status
        cdef Array of_factors = self.hold_of_rows(factors, "factors")
        cdef Array to_vector = self.hold_values(vector, "values of the vector", True)
        cdef Array to_squares = self.hold_of_rows(squares, "squares", True)
        with nogil:
            status = fed_move_by_rows(self.num_threads, &self.table, kept, doubles(of_factors),
                                      doubles(to_vector), doubles(to_squares))
        check(status)

    def mix(self, factors, offsets, offset, out):
        """Writes out[o] = the sum over r of factors[o, r] * row r, plus offsets[o] * offset.

        factors are float64 [num_out, num_rows], offsets float64 [num_out] or None, and out is
        float32 [num_out, num_values].
        """
        cdef int status
        cdef Array to_out = hold(out, c"f", 2, "mixed rows", True)
        cdef Array of_factors = hold(factors, c"d", 2, "factors")
        cdef Array of_offsets = hold_vector(offsets, c"d", to_out.length, "offsets")
        cdef Array of_offset = self.hold_values(offset, "values of the offset")
        of_factors.check_shape(to_out.length, self.table.num_rows)
        to_out.check_shape(to_out.length, self.table.num_values)
        if (offsets is None) != (offset is None):
            raise ValueError("one of offsets and offset is None; give both or none")
        if to_out.length == 0 or self.table.num_values == 0:
            return
        with nogil:
            status = fed_mix_rows(self.num_threads, &self.table, doubles(of_factors),
                                  doubles(of_offsets), doubles(of_offset), to_out.length,
                                  floats(to_out))
        check(status)

    def measure(self, origin=None, direction=None):
        """Returns the squared norms of row - origin, and its products with direction, which are 0
        if direction is None: float64 [num_rows] each. origin None means zeros."""
        cdef int status
        squares, products = np.zeros(self.table.num_rows), np.zeros(self.table.num_rows)
        cdef double *to_squares = <double *> memory_of(squares)
        cdef double *to_products = <double *> memory_of(products)
        cdef Array of_origin = self.hold_values(origin, "origins")
        cdef Array of_direction = self.hold_values(direction, "directions")
        with nogil:
            status = fed_measure_rows(self.num_threads, &self.table, doubles(of_origin),
                                      doubles(of_direction), to_squares, to_products)
        check(status)
        return squares, products

    def pairs(self, bint is_product):
        """Returns the squared distances, or the inner products, of all pairs of rows: float64
        [num_rows, num_rows]."""
        cdef int status
        pairs = np.zeros((self.table.num_rows, self.table.num_rows))
        cdef double *to_pairs = <double *> memory_of(pairs)
        with nogil:
            status = fed_row_pairs(self.num_threads, &self.table, is_product, to_pairs)
        check(status)
        return pairs


def least_diameter(distances, size_t num_chosen):
    """Returns the num_chosen rows whose largest distance from each other is least, in ascending
    order: int64 [num_chosen]. distances are float64 [m, m]."""
    cdef int status
    cdef size_t c
    cdef size_t *chosen
    cdef Array held = hold(distances, c"d", 2, "distances")
    if held.length != held.width or held.length < 1:
        raise ValueError(f"distances are [{held.length}, {held.width}], not square")
    if not 1 <= num_chosen <= held.length:
        raise ValueError(f"{num_chosen} of {held.length} rows")
    chosen = <size_t *> malloc(num_chosen * sizeof(size_t))
    if chosen == NULL:
        raise MemoryError
    with nogil:
        status = fed_least_diameter(doubles(held), held.length, num_chosen, chosen)
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


def run_inputs(Model model not None, images, key, size_t first_visit):
    """Returns the output of the input layers for images [n, I], float32 [n, outputs]."""
    cdef int status
    cdef fed_key made
    cdef fed_key *at = NULL
    cdef Array held = hold(images, c"f", 2, "images")
    held.check_shape(held.length, model.table.num_inputs)
    if key is not None:
        made = make_key(key)
        at = &made
    out = np.empty((held.length, fed_inputs_size(&model.table)), np.float32)
    if held.length == 0:
        return out
    cdef float *to_out = <float *> memory_of(out)
    with nogil:
        status = fed_run_inputs(&model.table, floats(held), held.length, at, first_visit, to_out)
    check(status)
    return out


def mixup_draw(double alpha, key, size_t first_visit, size_t num_rows):
    """Returns how a batch is mixed: the share, and the partners uint32 [num_rows]."""
    cdef fed_key made = make_key(key)
    cdef float share
    check_num_examples(num_rows)
    if not 1e-6 <= alpha <= 1e6:
        raise ValueError(f"alpha {alpha}: give a number from 1e-6 to 1e6")
    partners = np.empty(num_rows, np.uint32)
    cdef uint32_t *to_partners = <uint32_t *> memory_of(partners)
    with nogil:
        share = fed_mixup_draw(alpha, &made, first_visit, num_rows, to_partners)
    return share, partners


def batch_bytes(Model model not None, size_t batch_size, size_t num_clients, int num_threads):
    """Returns the bytes of the batches that a team of num_threads processes at a time."""
    num_bytes = fed_batch_bytes(&model.table, batch_size, num_clients, num_threads)
    if num_bytes == 0:
        raise CoreError(
            f"batches of {batch_size} examples, {num_clients} clients and {num_threads} threads"
        )
    return num_bytes


def exercise(Model model not None, params, size_t batch_size, size_t stage, int phase,
             size_t repeats):
    """Runs one phase of a stage (0 forward, 1 backward with a plain SGD update, 2 transformed
    copies of the weights) repeatedly on a synthetic batch, on this thread."""
    cdef int status
    cdef Array of_params = model.hold_params(params)
    with nogil:
        status = fed_exercise(&model.table, floats(of_params), batch_size, stage, phase, repeats)
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
    cdef uint32_t *to_indices = <uint32_t *> memory_of(indices)
    fed_order_init(&order, &plan.plan, num_examples, &made, <uint32_t *> memory_of(buffer))
    while done < num_visits:
        done += fed_order_next(&order, to_indices + done)
    return indices


def random_u64(key, size_t count):
    """Returns the first `count` outputs of a stream: uint64 [count]."""
    cdef fed_key made = make_key(key)
    values = np.empty(count, np.uint64)
    fed_rng_fill(&made, <uint64_t *> memory_of(values), count)
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
    cdef Array factors

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
        self.table.num_params = sum([math.prod(shape) for shape in shapes])
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

    cdef int set_factors(self, factors, kind, shapes) except -1:
        """Keeps the matrices after checking their length."""
        num_values = 0
        for shape in shapes:
            if len(shape) > 1:
                *others, b = shape
                a = math.prod(others)
                num_values += (b if kind == "powersgd-left" else a) * min(self.table.rank, a, b)
        self.factors = hold_vector(factors, c"f", num_values, "factors")
        self.table.factors = floats(self.factors)

    @property
    def capacity(self):
        """The largest number of bytes of a payload."""
        return fed_codec_capacity(&self.table)

    def encode(self, values not None, key):
        """Returns the payload of values float32 [P]."""
        cdef fed_key made = make_key(key)
        cdef size_t num_bytes = 0
        cdef int status
        cdef Array held = hold_vector(values, c"f", self.table.num_params, "values")
        payload = np.empty(max(self.capacity, 1), np.uint8)
        cdef uint8_t *to_payload = <uint8_t *> memory_of(payload)
        with nogil:
            status = fed_codec_encode(&self.table, &made, floats(held), to_payload, &num_bytes)
        check(status)
        return payload[:num_bytes].tobytes()

    def decode(self, payload, key):
        """Returns the values float32 [P] of a payload, or raises PayloadFault."""
        cdef fed_key made = make_key(key)
        cdef int status
        cdef Array held = hold(payload, c"B", 1, "bytes of the payload")
        values = np.empty(self.table.num_params, np.float32)
        cdef float *to_values = <float *> memory_of(values)
        with nogil:
            status = fed_codec_decode(&self.table, &made, <uint8_t *> held.start, held.length,
                                      to_values)
        check(status)
        return values

    def compress_rows(self, rows, chosen, keys, before, after, double decay, int num_threads):
        """Encodes and decodes the chosen rows of float32 [m, P] in place, and writes the residuals;
        returns SENT [num_chosen].

        before and after are lists of residuals, float32 [P]. If before, or an entry of it, is None,
        the residuals are zeros. No two arrays may share memory.
        """
        return _CodecCall(self, rows, chosen, keys, before, after).compress(decay, num_threads)

    def encode_rows(self, rows, chosen, keys, before, double decay, int num_threads):
        """Returns the payloads uint8 [num_chosen, capacity] of the chosen rows, and SENT."""
        return _CodecCall(self, rows, chosen, keys, before, None).encode(decay, num_threads)


cdef class _CodecCall:
    """The checked arguments of one call for many rows."""
    cdef Codec codec
    cdef size_t num_rows
    cdef float **rows
    cdef const float **before
    cdef float **after
    cdef fed_key *keys
    cdef Array matrix
    cdef object held

    def __cinit__(self, Codec codec not None, rows, chosen, keys, before, after):
        cdef Array of_chosen = hold(chosen, c"q", 1, "row numbers")
        cdef size_t num_params = codec.table.num_params, r
        cdef int64_t row, last = -1  # ascending, so that no two threads write to one row
        keys = list(keys)
        self.codec, self.num_rows = codec, of_chosen.length
        self.matrix = hold(rows, c"f", 2, "rows", True)
        if self.matrix.width != num_params or <size_t> len(keys) != self.num_rows:
            raise ValueError(f"rows are [{self.matrix.length}, {self.matrix.width}] and {len(keys)}"
                             f" keys for {num_params} parameters and {self.num_rows} rows")
        self.rows = <float **> calloc(max(self.num_rows, 1), sizeof(float *))
        self.keys = <fed_key *> calloc(max(self.num_rows, 1), sizeof(fed_key))
        if self.rows == NULL or self.keys == NULL:
            raise MemoryError
        for r in range(self.num_rows):
            row = (<int64_t *> of_chosen.start)[r]
            if not last < row < <int64_t> self.matrix.length:
                raise ValueError(f"row {row} of {self.matrix.length} after row {last}")
            last = row
            self.rows[r] = floats(self.matrix, row)
            self.keys[r] = make_key(keys[r])
        self.held = []
        self.before = <const float **> self.hold_residuals(before, False)
        self.after = self.hold_residuals(after, True)

    cdef float **hold_residuals(self, vectors, bint is_written) except? NULL:
        """Returns the addresses of a list of vectors; NULL without a list."""
        cdef Array held
        cdef size_t r, num_params = self.codec.table.num_params
        if vectors is None:
            return NULL
        if <size_t> len(vectors) != self.num_rows:
            raise ValueError(f"{len(vectors)} residuals for {self.num_rows} rows")
        starts = <float **> calloc(max(self.num_rows, 1), sizeof(float *))
        if starts == NULL:
            raise MemoryError
        try:
            for r, vector in enumerate(vectors):
                held = hold_vector(vector, c"f", num_params, "residuals", is_written)
                if is_written and held is None:
                    raise ValueError("a residual to write is None")
                self.held.append(held)
                starts[r] = floats(held)
        except BaseException:
            free(starts)
            raise
        return starts

    def __dealloc__(self):
        free(self.rows)
        free(self.before)
        free(self.after)
        free(self.keys)

    cdef compress(self, double decay, int num_threads):
        cdef int status
        sent = np.zeros(self.num_rows, SENT)
        cdef fed_sent *to_sent = <fed_sent *> memory_of(sent)
        if self.num_rows == 0:
            return sent
        with nogil:
            status = fed_codec_compress_rows(&self.codec.table, num_threads, self.keys, self.rows,
                                             self.num_rows, self.before, self.after, decay, to_sent)
        check(status)
        return sent

    cdef encode(self, double decay, int num_threads):
        cdef int status
        sent = np.zeros(self.num_rows, SENT)
        payloads = np.zeros((self.num_rows, max(self.codec.capacity, 1)), np.uint8)
        cdef fed_sent *to_sent = <fed_sent *> memory_of(sent)
        cdef uint8_t *to_payloads = <uint8_t *> memory_of(payloads)
        if self.num_rows == 0:
            return payloads, sent
        with nogil:
            status = fed_codec_encode_rows(&self.codec.table, num_threads, self.keys, self.rows,
                                           self.num_rows, self.before, decay, to_payloads, to_sent)
        check(status)
        return payloads[:, :self.codec.capacity], sent


def secure_sum(rows, weights, factors, rounding_keys, masks, levels, *, center=None,
               int num_threads, bint returns_sent=False):
    """Sums rows float32 [n, P] of m >= n clients, as fed_secure_sum does.

    `weights` has a whole number for each client, 0 for those without a row; `factors` is float64
    [m]; `rounding_keys` has a key for each client, or is None; `levels` are (low, high, top level,
    mask bits, clip, whether signs are taken). Returns the sums uint64 [P + 1], the number of
    coordinates that were clipped, and the masked rows uint64 [m, P + 1] or None.
    """
    weights = list(weights)
    keys = None if rounding_keys is None else list(rounding_keys)
    cdef Array held = hold(rows, c"f", 2, "rows"), of_factors = hold(factors, c"d", 1, "factors")
    cdef Array of_center = None if center is None else hold(center, c"d", 1, "center")
    cdef size_t num_clients = len(weights), num_rows = held.length, i
    cdef fed_secure_terms terms
    cdef uint64_t num_clipped = 0
    cdef uint64_t *to_total
    cdef uint64_t *to_sent = NULL
    cdef int status
    if num_rows > num_clients or (keys is not None and <size_t> len(keys) != num_clients):
        raise ValueError(f"{num_rows} rows or the numbers of keys do not fit {num_clients} clients")
    if any(weights[num_rows:]):
        raise ValueError("a client without a row has a weight above 0")
    if <size_t> of_factors.length != num_clients:
        raise ValueError(f"{of_factors.length} factors for {num_clients} clients")
    if of_center is not None and of_center.length != held.width:
        raise ValueError(f"a center of {of_center.length} values for rows of {held.width}")
    cdef const float **starts = <const float **> calloc(num_clients + 1, sizeof(float *))
    cdef uint64_t *counts = <uint64_t *> calloc(num_clients + 1, sizeof(uint64_t))
    cdef fed_key *rounding = <fed_key *> calloc(num_clients + 1, sizeof(fed_key))
    try:
        if starts == NULL or counts == NULL or rounding == NULL:
            raise MemoryError
        for i in range(num_clients):
            counts[i] = weights[i]
            if keys is not None:
                rounding[i] = make_key(keys[i])
            if i < num_rows:
                starts[i] = floats(held, i)
        terms.num_clients, terms.num_params = num_clients, held.width
        terms.rows, terms.weights, terms.factors = starts, counts, doubles(of_factors)
        terms.center = doubles(of_center)
        terms.low, terms.high, terms.top_level, terms.mask_bits, terms.clip = levels[:5]
        terms.takes_signs = levels[5]
        terms.rounding_keys = NULL if keys is None else rounding
        terms.masks = make_key(masks)
        total = np.zeros(held.width + 1, np.uint64)
        to_total = <uint64_t *> memory_of(total)
        sent = None
        if returns_sent and num_clients > 0:
            sent = np.zeros((num_clients, held.width + 1), np.uint64)
            to_sent = <uint64_t *> memory_of(sent)
        with nogil:
            status = fed_secure_sum(num_threads, &terms, to_total, to_sent, &num_clipped)
        check(status)
        return total, num_clipped, sent
    finally:
        free(starts)
        free(counts)
        free(rounding)


def noised_mean(keys, factors, groups, bint takes_halves, total, double divisor, int num_threads):
    """Returns (total + noise) / divisor, float32 [n]; see fed_noise. groups are float64 [g, n], a
    row for each level and at least as many as keys; or None. The last key's row is written."""
    cdef fed_key each[64]
    cdef fed_noise noise
    cdef size_t num_keys = len(keys), k
    cdef Array of_factors = hold(factors, c"d", 1, "factors")
    cdef Array held = hold(total, c"d", 1, "total"), of_groups = None
    cdef int status
    of_factors.check_shape(num_keys)
    noise.num_keys, noise.keys, noise.factors = num_keys, each, doubles(of_factors)
    noise.groups, noise.takes_halves = NULL, takes_halves
    if groups is not None:
        of_groups = hold(groups, c"d", 2, "groups", True)
        if of_groups.width != held.length:
            raise ValueError(f"groups are [{of_groups.length}, {of_groups.width}] for "
                             f"{held.length} values")
        noise.groups = doubles(of_groups)
    if not 1 <= num_keys <= (1 if groups is None else min(64, of_groups.length)):
        raise ValueError(f"{num_keys} keys; give 1, or with groups at most 64 and one per row")
    for k in range(num_keys):
        each[k] = make_key(keys[k])
    mean = np.empty(held.length, np.float32)
    cdef float *to_mean = <float *> memory_of(mean)
    if held.length > 0:
        with nogil:
            status = fed_noised_mean(num_threads, &noise, doubles(held), divisor, to_mean,
                                     held.length)
        check(status)
    return mean


cdef fed_synthetic make_synthetic(options):
    pictures, seed, style_spread, label_noise, sizes = options  # unpacking checks the length
    return fed_synthetic(pictures, seed, style_spread, label_noise, sizes)


def synthetic_count(options, uint64_t client_key, int split):
    """Returns the number of examples of a client of a synthetic data set; options are the fields
    of fed_synthetic in order."""
    cdef fed_synthetic made = make_synthetic(options)
    return fed_synthetic_count(&made, client_key, split)


def synthetic_draw(options, uint64_t client_key, int split, size_t first, size_t num):
    """Draws examples of a client: pixels uint8 [num, bytes of a picture], labels int32 [num]."""
    cdef int status
    cdef fed_synthetic made = make_synthetic(options)
    pixels = np.empty((num, fed_synthetic_bytes(&made)), np.uint8)
    labels = np.empty(num, np.int32)
    cdef uint8_t *to_pixels = <uint8_t *> memory_of(pixels)
    cdef int32_t *to_labels = <int32_t *> memory_of(labels)
    if num == 0:
        return pixels, labels
    with nogil:
        status = fed_synthetic_draw(&made, client_key, split, first, num, to_pixels, to_labels)
    check(status)
    return pixels, labels
