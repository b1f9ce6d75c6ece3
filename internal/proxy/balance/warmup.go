package balance

import (
	"math"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// warmupScale makes room for the fractions of a weight.
const warmupScale = 1000

// Warm returns a host's weight at an age, in thousandths of the weight it grows
// to. Source: Envoy, "Slow start mode".
func Warm(w *plan.Warmup, weight uint32, age time.Duration) uint32 {
	weight = min(max(weight, 1), math.MaxUint32/warmupScale)
	if w == nil || age >= w.Duration {
		return weight * warmupScale
	}
	part := math.Pow(float64(max(age, time.Second))/float64(w.Duration), 1/w.Aggression)
	part = min(max(part, w.MinPercent/100), 1)
	return uint32(max(float64(weight)*part*warmupScale, 1))
}
