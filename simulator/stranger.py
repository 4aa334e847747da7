"""Another router in front of the same workers. Nobody looks at its answers: it takes pages and gives them back."""

from array import array

from engine.core.messages import Generate
from engine.core.types import Request, Sampling
from engine.server.inbox import Received, SessionOpened
from simulator.chance import Chance
from simulator.worker import SimWorker

SESSION = -1
MAX_NEW = 10
PATIENT_S = 120.0


class Stranger:
    """Has a session with each worker that it ever asked for something; its draws of wrong pages count like any."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._met: set[str] = set()
        self._num_asked = 0

    def ask(self, worker: SimWorker, tokens: "array[int]") -> None:
        """One request."""
        if worker.key not in self._met:
            self._met.add(worker.key)
            worker.engine.post(SessionOpened(SESSION))
        self._num_asked += 1
        chance, now = self._chance, worker.time()
        sampling = Sampling(max_tokens=chance.whole(1, MAX_NEW), seed=self._num_asked)
        request = Request(chance.whole(1, 1 << 40), tokens, len(tokens), sampling, now, now + PATIENT_S)
        worker.engine.post(Received(SESSION, Generate(request)))
