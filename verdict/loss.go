package verdict

import (
	"math"
	"time"
)

// loss estimates how lossy a path is from transmissions of the last minutes.
//
// p is the share of transmissions that had to be repeated, b the share of
// unanswered repetitions that were followed by one more: 0 when losses come
// alone, near 1 when they come in bursts. Both are averages with a prior:
// priorTx transmissions of which half a one was lost, so that no path is taken
// for clean before some hundred transmissions were seen to arrive.
type loss struct {
	tx, lost          float64 // transmissions, and those that were repetitions
	trials, continued float64 // repetitions in stalls that ended well, and those followed by one more
	at                time.Duration

	// The same of the last seconds, which tell of a path that has just turned
	// bad: the minutes before would have it clean for too long.
	newTx, newLost float64
	newAt          time.Duration
}

const (
	priorTx   = 50
	priorLost = 0.5
	// priorTrials weighs the assumption that losses come alone.
	priorTrials = 2
	// lossHalfLife: what a path was like some minutes ago says little.
	lossHalfLife = 2 * time.Minute
	// newHalfLife: long enough for a slow connection to show some losses.
	newHalfLife = 3 * time.Second
	// newPriorTx: a loss within a handful of transmissions is no large share yet.
	newPriorTx = 10
	// minFlowBurst: one flow may have a path of its own (ECMP), about whose
	// bursts the others know nothing; assume that every second loss brings
	// another.
	minFlowBurst = 0.5
	// surely is the logarithm of the probability below which a silence is no
	// accident, one in ten million; on a path that is lossy anyway, where the
	// kernel's own retransmissions do the rest and a false verdict costs a
	// second one soon, one in ten thousand million. A loss made good in the last
	// seconds is reason enough: how bad the path has become shows only later.
	lossyFrom   = 0.02
	ln10        = 2.302585092994046
	surelyClean = -7 * ln10
	surelyLossy = -10 * ln10
	// surelySibling is for flows on a path on which one was just found broken, which makes
	// others likely: two asks on a clean path (facts.md, "How long silence must be").
	surelySibling = -4*ln10 + 1e-9
	// surelyConnect is for a connect that hangs: a false verdict costs a client a retry.
	surelyConnect = -5 * ln10
	// surelyAlone is added where connections testify alone, without fresh ones.
	surelyAlone  = -3 * ln10
	maxLossShare = 0.95
)

// flowLoss is the loss that one connection has seen: it may have a way of its own (ECMP),
// which is worse than those of the others.
type flowLoss struct{ tx, lost float32 }

// flowTx is how many transmissions are remembered at most; the older half is forgotten.
const flowTx = 200

func (f *flowLoss) answered(tx, lost float32) {
	if f.tx += tx; f.lost < maxLossShare*f.tx {
		f.lost += lost
	}
	if f.tx > flowTx {
		f.lost *= flowTx / 2 / f.tx
		f.tx = flowTx / 2
	}
}

// p is as of loss; with few transmissions it says nothing.
func (f *flowLoss) p() float64 { return min(maxLossShare, float64(f.lost/(f.tx+newPriorTx))) }

// decay forgets, so that the numbers describe the last minutes.
func (l *loss) decay(now time.Duration) {
	if dt := now - l.at; dt > time.Second {
		f := math.Exp2(-float64(dt) / float64(lossHalfLife))
		l.tx *= f
		l.lost *= f
		l.trials *= f
		l.continued *= f
		l.at = now
	}
	if dt := now - l.newAt; dt > 100*time.Millisecond {
		f := math.Exp2(-float64(dt) / float64(newHalfLife))
		l.newTx *= f
		l.newLost *= f
		l.newAt = now
	}
}

// answered records tx transmissions, lost of which were repetitions, on a
// connection that was heard after them.
func (l *loss) answered(tx, lost float64) {
	l.tx += tx
	l.lost += lost
	l.newTx += tx
	l.newLost += lost
}

// stallEnded records a stall of k repetitions that ended well.
func (l *loss) stallEnded(k int) {
	if k > 0 {
		l.trials += float64(k)
		l.continued += float64(k - 1)
	}
}

// p is the probability that a transmission is not answered: what the last minutes
// say or what the last seconds say, whichever is worse. Only losses that were made
// good count: connections that all stall for good, because a virtual address has
// moved, do not make a path lossy.
func (l *loss) p() float64 {
	return min(maxLossShare, max((l.lost+priorLost)/(l.tx+priorTx), l.newLost/(l.newTx+newPriorTx)))
}

// b is the probability that a transmission is not answered if the one before it
// was not.
func (l *loss) b() float64 {
	p := l.p()
	return min(maxLossShare, max(p, (l.continued+priorTrials*p)/(l.trials+priorTrials)))
}

// surely is the likelihood below which a silence is taken for a fact.
func (l *loss) surely() float64 {
	if l.p() >= lossyFrom || l.newLost >= 0.5 {
		return surelyLossy
	}
	return surelyClean
}

// likelihood is the logarithm of the probability that n transmissions in runs
// stretches, between which something got through, are all lost by accident.
func likelihood(p, b float64, n, runs int) float64 {
	if n <= 0 {
		return 0
	}
	runs = max(1, min(runs, n))
	return float64(runs)*math.Log(p) + float64(n-runs)*math.Log(b)
}
