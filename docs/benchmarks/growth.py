# How far can a companion get ahead? heavy shape-alternating tenant a, companion b with as much weight.
import zimage_consumers.image_worker.schedule as s; print(s.__file__)
from zimage_consumers.image_worker.batching import BatchLimits, cost
from tests.unit.image_worker.jobs import job
for rounds in (10, 50, 200):
    S=s.Scheduler({}, BatchLimits(8)); got={"a":0.,"b":0.}
    for _ in range(rounds*10):
        S.add(job(tenant="b",width=512,height=512))
    for _ in range(rounds*3):
        S.add(job(tenant="a",width=64,height=64)); S.add(job(tenant="a",width=512,height=512))
    for _ in range(rounds):
        for j in S.take_batch(0.): got[j.decoded.tenant]+=cost(j.decoded)
    print(rounds, got)
