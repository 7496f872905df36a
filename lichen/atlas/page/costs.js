// What a workload costs, from the rows of the price table: of the rows that hold, the last one counts.

const weekend = (day) => [0, 6].includes(new Date(`${day}T00:00Z`).getUTCDay());
const within = (hour, [start, end]) =>
  start <= end ? start <= hour && hour < end : hour >= start || hour < end;
const onDay = (price, day) =>
  (!price.since || price.since <= day) &&
  (!price.until || day < price.until) &&
  !(price.weekdays && weekend(day));
const holds = (price, day, hour, prompt) =>
  onDay(price, day) &&
  prompt >= price.above + (price.above > 0 ? 1 : 0) &&
  (!price.hours || price.hours.some((span) => within(hour, span)));

const priceAt = (model, provider, day, hour, prompt) =>
  model.prices.findLast((price) => price.provider === provider && holds(price, day, hour, prompt)) ?? null;

const sellers = (model) => [...new Set(model.prices.map((price) => price.provider))];

// USD of one request; tokens from the cache cost as fresh ones where no rate for them is listed.
function requestCost(price, { input_tokens, output_tokens, cached_share }) {
  const cached = input_tokens * cached_share;
  return (
    ((input_tokens - cached) * price.input +
      cached * (price.cache_read ?? price.input) +
      output_tokens * price.output) /
    1e6
  );
}

// USD per million tokens at a UTC hour, or with hour null averaged over the day; null where a price is unknown.
function costAt(model, provider, workload, hour) {
  const hours = hour === null ? [...Array(24).keys()] : [hour];
  const found = hours.map((each) => priceAt(model, provider, data.as_of, each, workload.input_tokens));
  if (found.includes(null)) return null;
  const request = found.reduce((sum, price) => sum + requestCost(price, workload), 0) / hours.length;
  return (request / (workload.input_tokens + workload.output_tokens)) * 1e6;
}

// {provider, cost}: of the provider that the catalogue names first, or of the cheapest one; null if unknown.
function offer(model, workload, hour, cheapest) {
  const names = cheapest ? sellers(model) : model.provider ? [model.provider] : [];
  const offers = names
    .map((provider) => ({ provider, cost: costAt(model, provider, workload, hour) }))
    .filter(({ cost }) => cost !== null);
  return offers.sort((a, b) => a.cost - b.cost)[0] ?? null;
}
