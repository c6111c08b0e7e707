-- What wrk sends. Run by perf/race/http.py:
--   wrk -s perf/race/requests.lua URL -- get FILE SEED
--     sends the paths of FILE (one a line, prepared and checked beforehand) in a random order
--   wrk -s perf/race/requests.lua URL -- post PATH TEMPLATE SERIES FIRST_SECOND
--     sends the template with @S (a series), @V (a value) and @T (seconds, no two alike for a series) filled in

local THREADS_MAX = 16
local thread_count = 0

function setup(thread)
  thread:set("id", thread_count)
  thread_count = thread_count + 1
end

local function gets(file, seed)
  math.randomseed(id + 1 + 1000 * tonumber(seed))
  local requests = {}
  for path in io.lines(file) do
    requests[#requests + 1] = wrk.format("GET", path)
  end
  local count = #requests
  return function()
    return requests[math.random(count)]
  end
end

local function posts(path, template, series_count, first_second)
  series_count = tonumber(series_count)
  local second = tonumber(first_second) + id
  local series = -1
  local filled = template:gsub("@S", "000000"):gsub("@V", "000.00"):gsub("@T", "0000000000")
  -- The parts between the marks are fixed and all numbers have a fixed width: only the body changes.
  local head = wrk.format("POST", path, {}, filled):match("^.-\r\n\r\n")
  local order, parts, from = {}, {}, 1
  while true do
    local at = template:find("@[SVT]", from)
    if at == nil then break end
    parts[#parts + 1] = template:sub(from, at - 1)
    order[#order + 1] = template:sub(at + 1, at + 1)
    from = at + 2
  end
  local tail = template:sub(from)
  local format, random = string.format, math.random
  -- JSON takes no leading zeros: series are numbered from 100,000 on.
  return function()
    series = series + 1
    if series == series_count then
      series, second = 0, second + THREADS_MAX
    end
    local fill = {
      S = 100000 + series,
      V = format("%d.%02d", random(100, 999), random(0, 99)),
      T = format("%d", second),
    }
    return head .. parts[1] .. fill[order[1]] .. parts[2] .. fill[order[2]] .. parts[3] .. fill[order[3]] .. tail
  end
end

function init(args)
  local kind = args[1]
  if kind == "get" then
    request = gets(args[2], args[3])
  else
    request = posts(args[2], args[3], args[4], args[5])
  end
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
