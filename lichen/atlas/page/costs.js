// What a workload costs: the rates that hold, weighted by its tokens.

// USD of one request at `rates`.
function requestCost(rates, { input_tokens, output_tokens, cached_share }) {
  const cached = input_tokens * cached_share;
  return ((input_tokens - cached) * rates.input + cached * rates.cached + output_tokens * rates.output) / 1e6;
}

// USD per million tokens at a UTC hour, or with hour null averaged over the day; null where a price is unknown.
function costAt({ rows, tiers }, workload, hour) {
  const { hours } = tiers.findLast(({ from }) => workload.input_tokens >= from);
  const found = (hour === null ? hours : [hours[hour]]).map((row) => rows[row]);
  if (found.includes(undefined)) return null;
  const request = found.reduce((sum, rates) => sum + requestCost(rates, workload), 0) / found.length;
  return (request / (workload.input_tokens + workload.output_tokens)) * 1e6;
}

// With its `cost` the offer of the provider that the catalogue names first, or of the cheapest one; undefined if unknown.
function offer(model, workload, hour, cheapest) {
  return model.offers
    .filter(({ provider }) => cheapest || provider === model.provider)
    .map((each) => ({ ...each, cost: costAt(each, workload, hour) }))
    .filter(({ cost }) => cost !== null)
    .sort((a, b) => a.cost - b.cost)[0];
}
