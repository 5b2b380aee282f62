"""The graph IR: typed values, nodes, encodings and their textual form."""

from dlcc.ir.compressed import (
    Binary,
    Codebook,
    ProductCodebook,
    ResidualCodebook,
    Ternary,
)
from dlcc.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType
from dlcc.ir.encodings import (
    BFLOAT16,
    DENSE,
    FLOAT16,
    Affine,
    BFloat16,
    Dense,
    Encoding,
    Float16,
    ShortFloat,
)
from dlcc.ir.graph import AttrValue, Constant, Graph, Node, Value, every_graph
from dlcc.ir.grouped import Grouped
from dlcc.ir.sparse import Sparse
from dlcc.ir.text import graphs_equal, parse_graph, print_graph
from dlcc.ir.types import TensorType

__all__ = [
    "BF16",
    "BFLOAT16",
    "BOOL",
    "DENSE",
    "F16",
    "F32",
    "F64",
    "FLOAT16",
    "I8",
    "I16",
    "I32",
    "I64",
    "U8",
    "U16",
    "U32",
    "U64",
    "Affine",
    "AttrValue",
    "BFloat16",
    "Binary",
    "Codebook",
    "Constant",
    "DType",
    "Dense",
    "Encoding",
    "Float16",
    "Graph",
    "Grouped",
    "Node",
    "ProductCodebook",
    "ResidualCodebook",
    "ShortFloat",
    "Sparse",
    "TensorType",
    "Ternary",
    "Value",
    "every_graph",
    "graphs_equal",
    "parse_graph",
    "print_graph",
]
