-- What each of wrk's threads asks for. Run by perf/http.py:
--   wrk -s perf/workloads.lua URL -- WORKLOAD SERIES ROWS_PER_SERIES FIRST_TIMESTAMP ROUND
-- Loaded points: series 0 .. SERIES - 1, timestamps FIRST_TIMESTAMP + 1000 * row. Inserts go beyond them:
-- every round and every thread has a second of time of its own for each request.

local STEP = 1000
local THREADS_MAX = 16

local thread_count = 0

function setup(thread)
  thread:set("id", thread_count)
  thread_count = thread_count + 1
end

local function post(body)
  return wrk.format("POST", "/insert", { ["Content-Type"] = "application/json" }, body)
end

local function get(query)
  return wrk.format("GET", "/query?" .. query)
end

-- Timestamps are too large for the numbers of Lua's format: their thousands are counted here, and the
-- last three digits are written as text.
local function next_second(state)
  state.count = state.count + 1
  return string.format("%d", state.second + state.count * THREADS_MAX + id)
end

local workloads = {}

-- One point, answered when it is durable.
function workloads.insert_one(state)
  local second, series = nil, 0
  return function()
    series = series + 1
    if second == nil or series >= state.series then
      second, series = next_second(state), 0
    end
    return post(
      '{"timestamp":' .. second .. '000,"value":' .. math.random(10000) / 100
        .. ',"series_id":' .. series .. "}"
    )
  end
end

-- An array of points: many series, a few moments.
local function insert_array(state, batch_rows)
  local rows = {}
  local width = math.min(state.series, 100)
  for row = 0, batch_rows - 1 do
    rows[#rows + 1] = string.format(
      '{"series_id":%d,"timestamp":@%03d,"value":%.2f}',
      row % width, math.floor(row / width), math.random(10000) / 100
    )
  end
  local template = "[" .. table.concat(rows, ",") .. "]"
  return function()
    return post((template:gsub("@", next_second(state))))
  end
end

-- Columns of one series.
local function insert_columns(state, batch_rows)
  local times, values = {}, {}
  for row = 0, batch_rows - 1 do
    times[#times + 1] = string.format("@%03d", row)
    values[#values + 1] = string.format("%.2f", math.random(10000) / 100)
  end
  local times_template = table.concat(times, ",")
  local rest = '],"value":[' .. table.concat(values, ",") .. "]}"
  return function()
    local series = math.random(0, state.series - 1)
    local timestamps = times_template:gsub("@", next_second(state))
    return post('{"series_id":' .. series .. ',"timestamp":[' .. timestamps .. rest)
  end
end

for _, batch_rows in ipairs({ 64, 1000 }) do
  workloads["insert_array_" .. batch_rows] = function(state)
    return insert_array(state, batch_rows)
  end
  workloads["insert_columns_" .. batch_rows] = function(state)
    return insert_columns(state, batch_rows)
  end
end

local function range(state, rows)
  local offsets = math.max(state.rows - rows, 0)
  return function()
    local first = state.first + math.random(0, offsets)
    return get(string.format(
      "series_id=%d&start=%d000&end=%d000",
      math.random(0, state.series - 1), first, first + rows - 1
    ))
  end
end

function workloads.range_100(state)
  return range(state, 100)
end

function workloads.range_1000(state)
  return range(state, 1000)
end

-- 100 means over all points of a series that were loaded, up to 10,000.
function workloads.windows(state)
  local rows = math.min(state.rows, 10000)
  local query = string.format(
    "start=%d000&end=%d000&step=%d&agg=mean&series_id=",
    state.first, state.first + rows - 1, math.max(math.floor(rows / 100), 1) * STEP
  )
  return function()
    return get(query .. math.random(0, state.series - 1))
  end
end

function init(args)
  local name, series, rows, first, round = unpack(args)
  math.randomseed(id + 1 + 1000 * tonumber(round))
  local state = {
    series = tonumber(series),
    rows = tonumber(rows),
    first = tonumber(first) / STEP,
    count = 0,
  }
  -- A round has ten million seconds, far more than it can use.
  state.second = state.first + state.rows + tonumber(round) * 10000000
  request = workloads[name](state)
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%.6f,"bytes":%d,"p50_ms":%.4f,"p95_ms":%.4f,"p99_ms":%.4f,'
      .. '"max_ms":%.4f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, summary.bytes, latency:percentile(50) / 1000,
    latency:percentile(95) / 1000, latency:percentile(99) / 1000, latency.max / 1000,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
