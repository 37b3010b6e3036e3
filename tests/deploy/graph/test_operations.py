"""Each integer operation has everything: a record, one reference kernel, one runtime kernel, a lowering that makes it."""

import pytest

from keras_lowbit.deploy.graph import GraphBuilder, Node, Range, Tensor
from keras_lowbit.deploy.graph.operations import (
    OPERATIONS,
    check_node,
    data_movement,
    elementwise,
    masks,
    matrices,
    recurrent,
    weighted,
    windows,
)
from keras_lowbit.deploy.graph.operations.operation import Operation, Use
from keras_lowbit.deploy.lowering import lower  # noqa: F401 - registers the handlers
from keras_lowbit.deploy.lowering.registry import HANDLERS
from keras_lowbit.deploy.reference import trace  # noqa: F401 - registers the kernels
from keras_lowbit.deploy.reference.call import KERNELS
from keras_lowbit.deploy.runtime.node_kernels import MAKERS
from keras_lowbit.deploy.runtime.runtime import Runtime  # noqa: F401 - registers the kernels
from tests.support import operator_table
from tests.support.lowering_zoo import ZOO


@pytest.mark.parametrize("name", OPERATIONS)
def test_has_one_reference_kernel_and_one_runtime_kernel(name):
    assert name in KERNELS, f"no function in deploy/reference has @kernel({name!r})"
    assert name in MAKERS, f"no function in deploy/runtime has @runs({name!r})"


def test_no_kernel_is_for_an_operation_without_a_record():
    assert {*KERNELS, *MAKERS} == set(OPERATIONS)


def test_every_record_is_filed_under_its_name():
    rooms = (weighted, recurrent, matrices, elementwise, windows, data_movement, masks)
    records = [record for room in rooms for record in vars(room).values() if isinstance(record, Operation)]
    assert len({record.name for record in records}) == len(records)
    assert {record.name for record in records} | {"float_subgraph"} == set(OPERATIONS)


def test_the_zoo_makes_every_operation_and_the_table_of_operators():
    text, made = operator_table.of_zoo(ZOO.values())
    assert made == set(OPERATIONS)
    assert text == operator_table.PATH.read_text(encoding="utf-8"), (
        "python -m tests.support.operator_table writes it anew"
    )


def test_every_kind_with_an_integer_form_has_a_handler():
    """What conversion takes for an integer operation, lowering must be able to make."""
    from keras_lowbit.convert.analysis import operations

    kinds = {*operations._SIMPLE, *operations.QUANTIZED_CLASSES, "Activation", "ReLU"}
    assert kinds - set(HANDLERS) == set()


def test_unknown_operation_lists_the_known_ones():
    tensors = {"x": Tensor("x", (None, 3), "int8", 0.1), "y": Tensor("y", (None, 3), "int8", 0.1)}
    with pytest.raises(ValueError, match="unknown operation; expected one of conv2d"):
        check_node(Node("warp", "y", ("x",), ("y",)), tensors)
    builder = GraphBuilder()
    builder.input("x", (3,), range=Range(0.1, 0))
    with pytest.raises(ValueError, match="warp 'y': unknown operation"):
        builder.operation("warp", ("x",), "y")


@pytest.mark.parametrize("name", OPERATIONS)
def test_text_of_the_record_is_complete(name):
    record = OPERATIONS[name]
    assert record.inputs is None or record.inputs >= 1
    assert record.weighted == (record.inputs == 3 and name != "where")
    assert record.builtin is None or callable(record.builtin)
    assert all(limit.what and limit.below > 0 for limit in record.limits)


def test_a_limit_says_what_it_is_of():
    limit, of_int16 = OPERATIONS["conv2d"].limits
    kernel = Tensor("k", (1, 1, 1, 1), "int8", [3.0], 0, [[[[1]]]])
    for codes in ("int8", "int16"):
        x, y = (Tensor(name, (None, 1, 1, 1), codes, scale) for name, scale in (("x", 2.0), ("y", 0.5)))
        use = Use(Node("conv2d", "y", ("x", "k"), ("y",)), (x, kernel), (y,))
        assert (limit.factor(use), of_int16.factor(use)) == (12.0, 12.0 if codes == "int16" else 0.0)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        ("conv2d", ["x"], "its own method of GraphBuilder"),
        ("float_subgraph", ["x"], "its own method of GraphBuilder"),
        ("maximum", [], "maximum 'y' has no inputs: expected 2"),
        ("mean", ["x"], "mean 'y' has incomplete attributes"),
    ],
)
def test_the_builder_refuses_an_operation_it_cannot_make_from_inputs_alone(op, inputs, message):
    builder = GraphBuilder()
    builder.input("x", (4, 4, 2), range=Range(0.1, 0))
    with pytest.raises(ValueError, match=message):
        builder.operation(op, inputs, "y")
