"""The operations: functions from tensors to tensors. Anything NumPy can read may stand for a tensor.

Values are IEEE's: 1/0 is inf, sqrt(-1) is NaN, and no operation raises for it. Where NumPy's own loops compute (basic
arithmetic, sums, products) NumPy's warnings appear as `numpy.errstate` says; generated loops are silent.
"""

from minigan.ops.attention import (
    embedding as embedding,
    scaled_dot_product_attention as scaled_dot_product_attention,
)
from minigan.ops.augment import augment as augment
from minigan.ops.conv import (
    conv as conv,
    conv_transpose as conv_transpose,
)
from minigan.ops.elementwise import (
    clip as clip,
    cos as cos,
    elu as elu,
    erf as erf,
    exp as exp,
    expm1 as expm1,
    gelu as gelu,
    leaky_relu as leaky_relu,
    log1p as log1p,
    maximum as maximum,
    minimum as minimum,
    relu as relu,
    sigmoid as sigmoid,
    silu as silu,
    sin as sin,
    softplus as softplus,
    sqrt as sqrt,
    tanh as tanh,
)
from minigan.ops.loss import (
    sigmoid_cross_entropy as sigmoid_cross_entropy,
)
from minigan.ops.norm import (
    batch_norm as batch_norm,
    instance_norm as instance_norm,
    layer_norm as layer_norm,
    moments as moments,
    pixel_norm as pixel_norm,
)
from minigan.ops.pool import (
    avg_pool as avg_pool,
    max_pool as max_pool,
    pixel_shuffle as pixel_shuffle,
    upsample as upsample,
)
from minigan.ops.product import (
    affine as affine,
)
from minigan.ops.random import (
    Stream as Stream,
    dropout as dropout,
)
from minigan.ops.reduce import (
    all_finite as all_finite,
    argmax as argmax,
    argsort as argsort,
    cumsum as cumsum,
    log_softmax as log_softmax,
    logsumexp as logsumexp,
    max as max,
    min as min,
    norm as norm,
    softmax as softmax,
    sort as sort,
    std as std,
    topk as topk,
    var as var,
)
from minigan.ops.shape import (
    concatenate as concatenate,
    einsum as einsum,
    one_hot as one_hot,
    pad as pad,
    split as split,
    stack as stack,
)
from minigan.tensor import (
    absolute as absolute,
    add as add,
    broadcast_to as broadcast_to,
    cast as cast,
    divide as divide,
    equal as equal,
    greater as greater,
    greater_equal as greater_equal,
    index as index,
    log as log,
    logical_and as logical_and,
    logical_or as logical_or,
    logical_xor as logical_xor,
    matmul as matmul,
    mean as mean,
    multiply as multiply,
    negative as negative,
    not_equal as not_equal,
    power as power,
    reshape as reshape,
    scatter as scatter,
    sign as sign,
    subtract as subtract,
    sum as sum,
    take as take,
    transpose as transpose,
    where as where,
)
