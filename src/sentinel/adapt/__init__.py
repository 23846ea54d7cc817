"""How a model changes shape: text, criteria, plans, surgery, compensation, recovery, cycles. A call is `adapt` itself."""

from sentinel.verbs import make_callable

make_callable(__name__)
